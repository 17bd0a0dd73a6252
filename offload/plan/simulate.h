#pragma once

#include <cstdint>
#include <vector>

#include <offload/plan/pass.h>
#include <offload/profile.h>

namespace offload {

/// What it takes on the device: the ring, and resident weights.
std::uint64_t bytes_of(const Residency& residency);

/// The same on a host that is its own device, where weights in memory are used where they lie.
std::uint64_t bytes_taken_on_host(const Residency& residency, const WeightTable& weights);

/// One call in a row of calls: the mean over those that repeat, together, for ever.
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

} // namespace offload
