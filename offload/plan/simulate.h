#pragma once

#include <cstdint>
#include <vector>

#include <offload/plan/pass.h>
#include <offload/profile.h>
#include <offload/timeline.h>

namespace offload {

/// What it takes on the device: the ring, and resident weights.
std::uint64_t bytes_of(const Residency& residency);

/// The same on a host that is its own device, where weights in memory are used where they lie.
std::uint64_t bytes_taken_on_host(const Residency& residency, const WeightTable& weights);

/// Who calls, in a closed loop: each caller makes the next call when it has the output of the last one.
struct Callers {
  int count = 1;
  int lanes = 1;      ///< calls in flight at the same time; the others wait
  double away_us = 0; ///< of several: at the most, between an output and the next call; drawn anew
};

/// A round, in which each caller makes one call: the mean over those that repeat.
struct Simulated {
  double time_us = 0;               ///< of the round
  double stall_us = 0;              ///< that a call waits for copies
  std::uint64_t streamed_bytes = 0; ///< for each call
  std::size_t period = 1;           ///< rounds after which all repeats itself
  double link_us = 0;               ///< of the round, that the link is at work; more where it gets further ahead still
  double compute_us = 0;            ///< the same of the device
};

/// Copies are gathered to about this many bytes: a 16 MiB copy reaches 99% of the link, a 1 MiB copy 84%.
constexpr std::uint64_t kBatchBytes = 16ULL << 20;

/// Runs the very scheduler that the device will see, beside a device that keeps time.
///
/// One caller is taken to be ahead of the device, so a step takes at least what the host takes for a node. It makes
/// calls until they repeat themselves, or `most_rounds`. Of several, each takes that time on a thread of its own while
/// steps wait for their turn on the device; they make a few rounds, of which the first third is not counted.
/// Throws Error when a step does not fit the ring.
Simulated simulate(const Pass& pass, const Residency& residency, const MachineProfile& machine, Callers callers = {},
                   std::size_t most_rounds = ~std::size_t{0});

/// Of the calls that repeat themselves, one of one caller, whose time is nearest to their mean: when what happens in
/// it.
Timeline timeline_of(const Pass& pass, const Residency& residency, const MachineProfile& machine);

} // namespace offload
