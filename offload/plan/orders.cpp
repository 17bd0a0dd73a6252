#include <offload/plan/orders.h>

#include <algorithm>
#include <numeric>
#include <utility>

namespace offload {

namespace {

/// Every weight that a step reads, once; those that only other steps read come last.
std::vector<WeightId> used_in_order(const Pass& pass) {
  std::vector<WeightId> order;
  std::vector<bool> seen(pass.weights->size());
  const auto look_at = [&](const Step& step) {
    for (const WeightId weight : step) {
      if (!seen[weight]) {
        seen[weight] = true;
        order.push_back(weight);
      }
    }
  };
  for (const PlanStep& step : pass.steps) {
    look_at(step.weights);
  }
  std::for_each(pass.choices.begin(), pass.choices.end(), [&](const Choice& choice) { look_at(choice.weights); });
  return order;
}

/// As the table of weights has them.
std::vector<WeightId> named_in_order(const Pass& pass) {
  std::vector<WeightId> order = used_in_order(pass);
  std::sort(order.begin(), order.end());
  return order;
}

} // namespace

const char* to_string(Rule rule) {
  switch (rule) {
    case Rule::fastest:
      return "fastest";
    case Rule::larger_first:
      return "larger-first";
    case Rule::first_first:
      return "first-first";
    case Rule::spread:
      return "spread";
    case Rule::module_order:
      return "module-order";
  }
  return "unknown";
}

Order largest_first(const Pass& pass) {
  Order order{used_in_order(pass)};
  std::stable_sort(order.weights.begin(), order.weights.end(),
                   [&](WeightId a, WeightId b) { return pass.bytes(a) > pass.bytes(b); });
  return order;
}

Order most_used_first(const Pass& pass) {
  std::vector<std::uint64_t> uses(pass.weights->size()); // in one pass
  for (const PlanStep& step : pass.steps) {
    for (const WeightId weight : step.weights) {
      ++uses[weight];
    }
  }
  Order order = largest_first(pass);
  std::stable_sort(order.weights.begin(), order.weights.end(),
                   [&](WeightId a, WeightId b) { return uses[a] > uses[b]; });
  return order;
}

/// By the bits of the position, reversed.
Order spread(const Pass& pass) {
  const std::vector<WeightId> used = used_in_order(pass);
  Order order;
  std::size_t span = 1;
  while (span < used.size()) {
    span *= 2;
  }
  for (std::size_t i = 0; i < span; ++i) {
    std::size_t reversed = 0;
    for (std::size_t bit = 1; bit < span; bit *= 2) {
      reversed = reversed * 2 + (i / bit) % 2;
    }
    if (reversed < used.size()) {
      order.weights.push_back(used[reversed]);
    }
  }
  return order;
}

std::vector<Order> orders_by(Rule rule, const Pass& pass) {
  switch (rule) {
    case Rule::larger_first:
      return {largest_first(pass)};
    case Rule::first_first:
      return {{used_in_order(pass)}};
    case Rule::spread:
      return {spread(pass)};
    case Rule::module_order:
      return {{named_in_order(pass), /*is_prefix=*/true}};
    case Rule::fastest:
      break;
  }
  const std::vector<WeightId> used = used_in_order(pass);
  return {largest_first(pass), most_used_first(pass), spread(pass), {used}, {{used.rbegin(), used.rend()}}};
}

} // namespace offload
