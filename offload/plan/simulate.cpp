#include <offload/plan/simulate.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include <offload/plan/simulation.h>

namespace offload {

namespace {

/// What was counted at the beginning and after each round, of which the last `period` repeat themselves.
struct Rounds {
  std::vector<Simulated> totals;
  std::size_t period;
};

Rounds run_rounds(Simulation& simulation, std::size_t steps, Callers callers, std::size_t most_rounds) {
  Rounds rounds{{simulation.total()}, 0};
  const auto run = [&] {
    simulation.run_round();
    rounds.totals.push_back(simulation.total());
  };
  if (callers.count > 1) {
    steps *= static_cast<std::size_t>(callers.count);
    const std::size_t most = std::min(most_rounds, std::clamp<std::size_t>(20'000 / (steps + 1), 3, 9));
    while (rounds.totals.size() <= most) {
      run();
    }
    rounds.period = most - most / 3;
    return rounds;
  }
  // The first call fills the ring. Once one ends as an earlier one did, all that comes repeats what came between.
  // That may take dozens of calls; long ones are not given as many.
  const std::size_t most = std::min(most_rounds, std::clamp<std::size_t>(50'000 / (steps + 1), 24, 96));
  std::vector<std::vector<std::uint64_t>> layouts;
  while ((rounds.period == 0 || layouts.size() < 3) && layouts.size() < most) {
    run();
    const auto now = simulation.layout();
    if (const auto same = std::find(layouts.begin(), layouts.end(), now); rounds.period == 0 && same != layouts.end()) {
      rounds.period = static_cast<std::size_t>(layouts.end() - same);
    }
    layouts.push_back(now);
  }
  rounds.period = rounds.period == 0 ? layouts.size() / 2 : rounds.period;
  return rounds;
}

Simulated mean_of(const Rounds& rounds, Callers callers) {
  const Simulated& first = rounds.totals[rounds.totals.size() - 1 - rounds.period];
  const Simulated& last = rounds.totals.back();
  const auto period = static_cast<double>(rounds.period);
  const std::size_t calls = std::max<std::size_t>(rounds.period * static_cast<std::size_t>(callers.count), 1);
  return {(last.time_us - first.time_us) / period,
          (last.stall_us - first.stall_us) / static_cast<double>(calls),
          (last.streamed_bytes - first.streamed_bytes) / calls,
          rounds.period,
          (last.link_us - first.link_us) / period,
          (last.compute_us - first.compute_us) / period};
}

} // namespace

std::uint64_t bytes_of(const Residency& residency) {
  return std::accumulate(residency.bytes.begin(), residency.bytes.end(), residency.ring_bytes);
}

std::uint64_t bytes_taken_on_host(const Residency& residency, const WeightTable& weights) {
  std::uint64_t total = residency.ring_bytes;
  for (WeightId weight = 0; weight < weights.size(); ++weight) {
    total += weights[weight].source.kind == Source::Kind::file ? residency.bytes[weight] : 0;
  }
  return total;
}

Simulated simulate(const Pass& pass, const Residency& residency, const MachineProfile& machine, Callers callers,
                   std::size_t most_rounds) {
  Simulation simulation(pass, residency, machine, callers);
  return mean_of(run_rounds(simulation, pass.steps.size(), callers, most_rounds), callers);
}

Timeline timeline_of(const Pass& pass, const Residency& residency, const MachineProfile& machine) {
  Recording recording;
  Simulation simulation(pass, residency, machine, {}, &recording);
  Rounds rounds = run_rounds(simulation, pass.steps.size(), {}, ~std::size_t{0});
  // Where the device is the slower one, the link may still be getting further ahead of it, call by call.
  const std::vector<Simulated>& totals = rounds.totals;
  const auto link_us = [&](std::size_t end) { return totals[end].link_us - totals[end - rounds.period].link_us; };
  const std::size_t most = 2 * totals.size() + 96;
  do {
    for (std::size_t i = 0; i < rounds.period; ++i) {
      simulation.run_round();
      rounds.totals.push_back(simulation.total());
    }
  } while (std::abs(link_us(totals.size() - 1) - link_us(totals.size() - 1 - rounds.period)) > 1e-3 &&
           totals.size() < most);
  const double mean_us = mean_of(rounds, {}).time_us;
  const auto off_us = [&](std::size_t end) {
    return std::abs(totals[end].time_us - totals[end - 1].time_us - mean_us);
  };
  std::size_t nearest = totals.size() - 1;
  for (std::size_t end = nearest; end > totals.size() - 1 - rounds.period; --end) {
    nearest = off_us(end) < off_us(nearest) ? end : nearest;
  }
  return cut_timeline(recording, pass, residency, totals[nearest - 1].time_us, totals[nearest].time_us);
}

} // namespace offload
