#pragma once

#include <vector>

#include <offload/plan/pass.h>
#include <offload/rule.h>

namespace offload {

/// Weights that are read, each once, those first that are to be resident.
struct Order {
  std::vector<WeightId> weights;
  bool is_prefix = false; ///< nothing stays beyond the first for which there is no room
};

/// The largest first.
Order largest_first(const Pass& pass);

/// Those read most often first: each byte kept saves that many on the link.
Order most_used_first(const Pass& pass);

/// Spread evenly over the pass, so that what streams does too.
Order spread(const Pass& pass);

/// All that a rule allows, the plainest first.
std::vector<Order> orders_by(Rule rule, const Pass& pass);

} // namespace offload
