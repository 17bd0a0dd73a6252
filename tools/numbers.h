#pragma once

#include <algorithm>
#include <array>
#include <cstdio>
#include <string>

namespace offload::tools {

/// As printf writes it, in up to 63 characters.
inline std::string number(const char* pattern, double value) {
  std::array<char, 64> text{};
  const int length = std::snprintf(text.data(), text.size(), pattern, value);
  return {text.data(), static_cast<std::size_t>(std::clamp(length, 0, static_cast<int>(text.size()) - 1))};
}

/// Milliseconds with the digits that mean something.
inline std::string ms(double us) {
  if (us <= 0) {
    return "-";
  }
  return number(us < 1e4 ? "%.3f" : us < 1e5 ? "%.2f" : "%.1f", us / 1e3);
}

} // namespace offload::tools
