#pragma once

#include <compare>
#include <cstdint>
#include <vector>

#include <offload/profile.h>
#include <offload/ring/scheduler.h>

namespace offload {

/// One node of the model that reads weights.
struct PlanStep {
  Step weights;          ///< each once
  double compute_us = 0; ///< on the device, when all its weights are there
};

/// A node of which only the run knows what it reads: of `weights`, each once, `at_once` or fewer.
struct Room {
  Step weights;
  std::size_t at_once;

  auto operator<=>(const Room&) const = default;
};

/// What is planned: weights, and the steps of one pass that read them, in the order of execution.
struct Pass {
  std::vector<std::uint64_t> bytes; ///< of each weight as it lies in the ring, aligned to 512
  std::vector<PlanStep> steps;
  std::vector<Room> rooms;            ///< that a call may need too; they cost no time
  std::uint64_t pinned_bytes = ~0ULL; ///< of host memory as lay_out() fills it: what lies beyond has to be staged
  std::vector<bool> in_file;          ///< by weight: not in host memory at all; none where it is empty

  bool lies_in_file(WeightId weight) const { return weight < in_file.size() && in_file[weight]; }
};

/// Which weights stay on the device, and how many bytes the others pass through.
struct Residency {
  std::vector<bool> resident; ///< by weight
  std::uint64_t ring_bytes = 0;

  bool operator==(const Residency&) const = default;
};

/// One call in a row of calls: the mean of those after which the row repeats itself.
struct Simulated {
  double time_us = 0;
  double stall_us = 0;
  std::uint64_t streamed_bytes = 0;
  std::size_t period = 1; ///< calls after which the row repeats itself
};

/// Copies are gathered to about this many bytes: a 16 MiB copy reaches 99% of the link, a 1 MiB copy 84%.
constexpr std::uint64_t kBatchBytes = 16ULL << 20;

/// Runs the very streamer that the device will see, over a link that keeps time instead of moving bytes.
/// A row of calls is followed until it repeats itself, or for `most_calls` of them.
/// Throws Error when a step does not fit the ring.
Simulated simulate(const Pass& pass, const Residency& residency, const MachineProfile& machine,
                   std::size_t most_calls = ~std::size_t{0});

/// The steps without the weights that are resident, and without the steps that are then empty.
Sequence streamed_sequence(const Pass& pass, const std::vector<bool>& resident);

/// The order in which weights lie in host memory, as offsets by weight: that of first use, so that what is fetched
/// together lies together. Weights that no step reads come after those, and weights that lie in a file after all that
/// is in memory, as if the file followed it.
std::vector<std::uint64_t> lay_out(const Pass& pass);

} // namespace offload
