#include <offload/plan/pass.h>

#include <algorithm>
#include <utility>

namespace offload {

namespace {

double compute_us(const WeightTable& weights, const LeasedStep& step, const MachineProfile& machine) {
  double bytes = 0;
  for (const WeightId weight : step.weights) {
    bytes += static_cast<double>(weights[weight].bytes);
  }
  const Arithmetic arithmetic = step.weights.empty() ? Arithmetic::fp32 : weights[step.weights.front()].arithmetic;
  const double rate = arithmetic == Arithmetic::fp64   ? machine.fp64_flops_per_us
                      : arithmetic == Arithmetic::half ? machine.half_flops_per_us
                                                       : machine.fp32_flops_per_us;
  return std::max(step.flops / rate, bytes / machine.memory_bytes_per_us);
}

} // namespace

Pass make_pass(WeightTablePtr weights, const std::vector<LeasedStep>& steps, const MachineProfile& machine) {
  Pass pass;
  pass.weights = std::move(weights);
  for (const LeasedStep& step : steps) {
    const bool in_place = step.rows_only && std::all_of(step.weights.begin(), step.weights.end(), [&](WeightId weight) {
                            return (*pass.weights)[weight].source.direct;
                          });
    if (in_place) {
      pass.steps.push_back({{}, 0});
    } else {
      pass.steps.push_back({step.weights, compute_us(*pass.weights, step, machine)});
    }
  }
  return pass;
}

Sequence streamed_sequence(const Pass& pass, const Residency& residency, WeightId first) {
  Sequence sequence;
  for (const PlanStep& step : pass.steps) {
    Step streamed;
    for (const WeightId weight : step.weights) {
      if (!residency.stays(weight)) {
        streamed.push_back(first + weight);
      }
    }
    if (!streamed.empty()) {
      sequence.push_back(std::move(streamed));
    }
  }
  return sequence;
}

std::vector<WeightId> order_of_use(const std::vector<LeasedStep>& steps, std::size_t count) {
  std::vector<WeightId> order;
  std::vector<bool> has_place(count, false);
  const auto place = [&](WeightId weight) {
    if (!has_place[weight]) {
      has_place[weight] = true;
      order.push_back(weight);
    }
  };
  for (const LeasedStep& step : steps) {
    std::for_each(step.weights.begin(), step.weights.end(), place);
  }
  for (WeightId weight = 0; weight < count; ++weight) {
    place(weight);
  }
  return order;
}

} // namespace offload
