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
// Once calls have shown what a lap takes, from one lease to the next, its steps share that: as they would by the above.
// What streams is leased, so a lap is all that follows of what is resident. What a call does before its first lease is
// a step of its own then, of no weights.
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
constexpr double kIsTheLimit = 0.9; // of the time of a lap, that its launches take

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
  const double launch_us = (1 + step.others.launches) * machine.node_overhead_us;
  const bool is_host = machine.device_memory_bytes == 0;
  return {step.weights, product_us(step, weight_bytes, rate, machine) + others_us + (is_host ? launch_us : 0),
          launch_us};
}

PlanStep known_cost_of(const WeightTable& weights, const LeasedStep& step, const MachineProfile& machine) {
  return step.took ? PlanStep{step.weights, step.took->device_us, step.took->host_us} : cost_of(weights, step, machine);
}

/// What it takes more for twice as much.
double ratio(double once, double twice) { return once > 0 ? twice / once : 1; }

/// What a lap has taken, for the steps from `begin` to `end`: as they shared what it took before, and no more than
/// that; of the first, as they would by the costs that nothing has shown.
void share_lap(std::vector<LeasedStep>& steps, std::size_t begin, std::size_t end, Lap lap, bool host_waited,
               const Pass& by_costs) {
  Lap costs;                                           // of all, as if nothing had been measured
  Lap before;                                          // what is known
  const bool is_known = steps[begin].took.has_value(); // and so of all
  for (std::size_t i = begin; i < end; ++i) {
    const Lap cost{by_costs.steps[i].compute_us, by_costs.steps[i].launch_us};
    steps[i].took = is_known ? steps[i].took : cost;
    costs.device_us += cost.device_us;
    before.device_us += steps[i].took->device_us;
    before.host_us += steps[i].took->host_us;
  }
  lap.host_us = host_waited ? before.host_us : lap.host_us;
  if (lap.host_us > kIsTheLimit * lap.device_us && !host_waited) { // the device waited for launches
    lap.device_us = std::min(lap.device_us, costs.device_us);
  }
  if (is_known) {
    lap = {std::min(lap.device_us, before.device_us), std::min(lap.host_us, before.host_us)};
  }
  const auto count = static_cast<double>(end - begin);
  for (std::size_t i = begin; i < end; ++i) {
    Lap& its = *steps[i].took;
    its.device_us = before.device_us > 0 ? lap.device_us * its.device_us / before.device_us : lap.device_us / count;
    its.host_us = before.host_us > 0 ? lap.host_us * its.host_us / before.host_us : lap.host_us / count;
  }
}

} // namespace

Pass make_pass(WeightTablePtr weights, const std::vector<LeasedStep>& steps, const MachineProfile& machine) {
  Pass pass;
  pass.weights = std::move(weights);
  for (const LeasedStep& step : steps) {
    pass.is_measured = pass.is_measured || step.took;
    const bool in_place = step.rows_only && std::all_of(step.weights.begin(), step.weights.end(), [&](WeightId weight) {
                            return (*pass.weights)[weight].source.direct;
                          });
    if (in_place) {
      LeasedStep lookup = step;
      lookup.weights.clear();
      pass.steps.push_back(known_cost_of(*pass.weights, lookup, machine));
    } else {
      pass.steps.push_back(known_cost_of(*pass.weights, step, machine));
    }
  }
  return pass;
}

std::vector<LeasedStep> with_twice_the_rows(const WeightTable& weights, std::vector<LeasedStep> steps,
                                            const MachineProfile& machine) {
  for (LeasedStep& step : steps) {
    const PlanStep once = cost_of(weights, step, machine);
    step.flops *= 2;
    step.rows *= 2;
    step.bytes *= 2;
    step.others.flops *= 2;
    step.others.bytes *= 2;
    if (step.took) {
      step.took->device_us *= ratio(once.compute_us, cost_of(weights, step, machine).compute_us);
    }
  }
  return steps;
}

std::vector<std::size_t> lap_begins(const Pass& pass, const Residency& residency) {
  std::vector<std::size_t> begins = {0};
  for (std::size_t i = 0; i < pass.steps.size(); ++i) {
    const Step& leased = pass.steps[i].weights;
    if (std::any_of(leased.begin(), leased.end(), [&](WeightId weight) { return !residency.stays(weight); })) {
      begins.push_back(i);
    }
  }
  return begins;
}

bool record_laps(std::vector<LeasedStep>& steps, const WeightTablePtr& weights, const Residency& residency,
                 const Laps& laps, const MachineProfile& machine) {
  std::vector<LeasedStep> known = steps;
  if (known.empty() || !known.front().weights.empty()) {
    known.insert(known.begin(), LeasedStep{});
  }
  std::vector<LeasedStep> before = known;
  std::for_each(before.begin(), before.end(), [](LeasedStep& step) { step.took.reset(); });
  const Pass by_costs = make_pass(weights, before, machine);
  std::vector<std::size_t> begins = lap_begins(by_costs, residency);
  if (begins.size() != laps.each.size()) {
    return false;
  }
  begins.push_back(known.size());
  for (std::size_t lap = 0; lap < laps.each.size(); ++lap) {
    share_lap(known, begins[lap], begins[lap + 1], laps.each[lap], laps.host_waited, by_costs);
  }
  steps = std::move(known);
  return true;
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
