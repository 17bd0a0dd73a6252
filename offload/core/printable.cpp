#include <offload/core/printable.h>

#include <cstdint>

namespace offload {

namespace {

/// Bytes of the character that `text` begins with; 0 when it begins with none, or with one that controls.
std::size_t character(std::string_view text) {
  const auto byte = [&](std::size_t i) -> std::uint32_t {
    return i < text.size() ? static_cast<unsigned char>(text[i]) : 0;
  };
  const std::uint32_t first = byte(0);
  if (first < 0x80) {
    return first >= 0x20 && first != 0x7F ? 1 : 0;
  }
  const std::size_t bytes = first < 0xC2 ? 0 : first < 0xE0 ? 2 : first < 0xF0 ? 3 : first < 0xF5 ? 4 : 0;
  std::uint32_t code = bytes > 0 ? first & (0x7FU >> bytes) : 0;
  for (std::size_t i = 1; i < bytes; ++i) {
    if ((byte(i) & 0xC0U) != 0x80) {
      return 0;
    }
    code = code << 6 | (byte(i) & 0x3FU);
  }
  const bool is_longer_than_needed = code < (bytes == 3 ? 0x800U : bytes == 4 ? 0x10000U : 0xA0U); // to U+9F controls
  const bool is_none = (code >= 0xD800 && code < 0xE000) || code > 0x10FFFF;
  return is_longer_than_needed || is_none ? 0 : bytes;
}

} // namespace

std::string printable(std::string_view text, std::string_view kept) {
  constexpr std::string_view kDigits = "0123456789abcdef";
  std::string result;
  while (!text.empty()) {
    const std::size_t bytes = kept.find(text[0]) != std::string_view::npos ? 1 : character(text);
    const auto first = static_cast<unsigned char>(text[0]);
    if (bytes > 0) {
      result += text.substr(0, bytes);
    } else {
      result += {'\\', 'x', kDigits[first >> 4U], kDigits[first & 0xFU]};
    }
    text.remove_prefix(bytes > 0 ? bytes : 1);
  }
  return result;
}

} // namespace offload
