// Note [Costs of a step]
//
// A product has work, at the rate of a large product, and traffic (weights, input, output), at the rate of device
// memory. A GPU computes tiles: it multiplies rows that are not there as well, up to the next multiple of kTileRows. A
// single row is multiplied as a vector. Where each processor has many tiles, the traffic for the next one hides behind
// the work on this one; with one tile each, as in small products, one comes after the other. So the shorter of both
// hides but for the share that one tile (kTileUs) has in the work. Beside that, a product takes kFillUs until all
// processors are busy, and from when the first have nothing left to do.
//
// All other operators take the sum of their work and their traffic.
//
// The host launches ahead, so a step takes the larger of what the device computes and what the host needs to launch it.
// A host that is its own device does one after the other.
//
// The constants are fitted to stacks of products on H100 and H200 (tests/step_costs_test.cpp). 64 rows of fp32 by
// 4096 x 4096 take 69 us there: work is 43 of them, traffic 27. 16 rows take 53: work would be 11, and is 21 with 32.
// 1024 rows by 1024 x 1024 take 60, of which work is 43 and traffic 5.

#include <offload/plan/pass.h>

#include <algorithm>
#include <cmath>
#include <utility>

namespace offload {

namespace {

constexpr double kTileRows = 32; // the fewest rows of a tile that libraries choose
// For fp32; where tensor cores are faster, tiles end sooner by as much.
constexpr double kTileUs = 90; // 128 x 128 x 1024 on one of the processors of an H200
constexpr double kFillUs = 5;

double rate_of(const WeightTable& weights, const LeasedStep& step, const MachineProfile& machine) {
  const Arithmetic arithmetic = step.weights.empty() ? Arithmetic::fp32 : weights[step.weights.front()].arithmetic;
  return arithmetic == Arithmetic::fp64   ? machine.fp64_flops_per_us
         : arithmetic == Arithmetic::half ? machine.half_flops_per_us
                                          : machine.fp32_flops_per_us;
}

double product_us(const LeasedStep& step, double weight_bytes, double rate, const MachineProfile& machine) {
  const bool is_tiled = machine.device_memory_bytes > 0 && step.rows > 1;
  const double padded = is_tiled ? std::ceil(step.rows / kTileRows) * kTileRows / step.rows : 1;
  const double work_us = padded * step.flops / rate;
  const double traffic_us = (weight_bytes + step.bytes) / machine.memory_bytes_per_us;
  const double scale = std::min(1.0, machine.fp32_flops_per_us / rate);
  const double exposed = is_tiled ? std::min(1.0, scale * kTileUs / work_us) : 1;
  return std::max(work_us, traffic_us) + exposed * std::min(work_us, traffic_us) + (is_tiled ? scale * kFillUs : 0);
}

PlanStep cost_of(const WeightTable& weights, const LeasedStep& step, const MachineProfile& machine) {
  const double rate = rate_of(weights, step, machine);
  double weight_bytes = 0;
  for (const WeightId weight : step.weights) {
    weight_bytes += static_cast<double>(weights[weight].bytes);
  }
  const double others_us = step.others.flops / rate + step.others.bytes / machine.memory_bytes_per_us;
  PlanStep cost{step.weights, product_us(step, weight_bytes, rate, machine) + others_us, 1 + step.others.launches};
  if (machine.device_memory_bytes == 0) {
    cost.compute_us += cost.launches * machine.node_overhead_us;
  }
  return cost;
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
      LeasedStep lookup = step;
      lookup.weights.clear();
      pass.steps.push_back(cost_of(*pass.weights, lookup, machine));
    } else {
      pass.steps.push_back(cost_of(*pass.weights, step, machine));
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
