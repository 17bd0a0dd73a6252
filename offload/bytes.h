#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include <offload/export.h>

namespace offload {

/// Byte counts are written `8_GiB` in code and `8GiB` on a command line.
inline namespace literals {
constexpr std::uint64_t operator""_KiB(unsigned long long n) { return n << 10; }
constexpr std::uint64_t operator""_MiB(unsigned long long n) { return n << 20; }
constexpr std::uint64_t operator""_GiB(unsigned long long n) { return n << 30; }
} // namespace literals

/// `bytes` rounded up to a multiple of `alignment`, a power of two.
constexpr std::uint64_t align_up(std::uint64_t bytes, std::uint64_t alignment) {
  return (bytes + alignment - 1) & ~(alignment - 1);
}

/// Parses "123", "64KiB", "1.5GiB". Throws InputError that names `text` when it is not a size, is negative, or
/// overflows.
OFFLOAD_API std::uint64_t parse_bytes(std::string_view text);

/// "1.50 GiB", "64 KiB", "17 B": three significant figures, for people; never parsed back.
OFFLOAD_API std::string format_bytes(std::uint64_t bytes);

} // namespace offload
