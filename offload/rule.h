#pragma once

#include <array>
#include <cstdint>

#include <offload/export.h>

namespace offload {

/// By what it is chosen which weights stay on the device. All but the first are there to be compared with it: they have
/// the same engine, and the length of ring that suits them best.
enum class Rule : std::uint8_t {
  fastest,      ///< a simulated call is the shortest that was found
  larger_first, ///< the largest weights stay
  first_first,  ///< those that are read first
  spread,       ///< those at even distances in the order in which they are read
  module_order, ///< those that the module names first, up to the first that finds no room: a "device map"
};

inline constexpr std::array kRules = {Rule::fastest, Rule::larger_first, Rule::first_first, Rule::spread,
                                      Rule::module_order};

/// "fastest", "larger-first" and so on.
OFFLOAD_API const char* to_string(Rule rule);

} // namespace offload
