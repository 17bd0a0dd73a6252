#include <offload/bytes.h>

#include <array>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <utility>

#include <offload/error.h>

namespace offload {

namespace {

constexpr std::array<std::pair<std::string_view, std::uint64_t>, 4> kUnits = {
    {{"GiB", 1_GiB}, {"MiB", 1_MiB}, {"KiB", 1_KiB}, {"B", 1}}};

[[noreturn]] void refuse(std::string_view text, const char* why) {
  throw InputError("'" + std::string(text) + "' is " + why +
                   ": give bytes, or a number with KiB, MiB or GiB, as in 8GiB");
}

} // namespace

std::uint64_t parse_bytes(std::string_view text) {
  std::string_view number = text;
  std::uint64_t unit = 1;
  for (const auto& [suffix, bytes] : kUnits) {
    if (number.ends_with(suffix)) {
      number.remove_suffix(suffix.size());
      unit = bytes;
      break;
    }
  }
  const char* end = number.data() + number.size();
  std::uint64_t whole = 0;
  if (const auto [rest, error] = std::from_chars(number.data(), end, whole); error == std::errc() && rest == end) {
    std::uint64_t bytes = 0;
    if (__builtin_mul_overflow(whole, unit, &bytes)) {
      refuse(text, "more than 64 bits hold");
    }
    return bytes;
  }
  double value = 0;
  const auto [rest, error] = std::from_chars(number.data(), end, value, std::chars_format::fixed);
  if (error != std::errc() || rest != end || !std::isfinite(value) || value < 0) {
    refuse(text, "not a size");
  }
  const double bytes = value * static_cast<double>(unit);
  if (bytes >= 18446744073709551616.0) {
    refuse(text, "more than 64 bits hold");
  }
  return static_cast<std::uint64_t>(bytes);
}

std::string format_bytes(std::uint64_t bytes) {
  for (const auto& [suffix, unit] : kUnits) {
    if (unit > 1 && bytes >= unit - unit / 2048) { // of the next smaller unit it would round to 1024
      const double value = static_cast<double>(bytes) / static_cast<double>(unit);
      const int decimals = bytes % unit == 0 ? 0 : value < 9.995 ? 2 : value < 99.95 ? 1 : 0;
      std::array<char, 48> text{};
      std::snprintf(text.data(), text.size(), "%.*f %s", decimals, value, std::string(suffix).c_str());
      return text.data();
    }
  }
  return std::to_string(bytes) + " B";
}

} // namespace offload
