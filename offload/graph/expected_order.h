#pragma once

#include <vector>

#include <offload/graph/lowered_method.h>

namespace offload {

/// The steps of one call in the order in which it is expected to come to them: those of a loop take turns, as often as
/// the loop runs. None comes more than 1000 times.
std::vector<const LoweredStep*> expected_order(const std::vector<LoweredStep>& steps);

} // namespace offload
