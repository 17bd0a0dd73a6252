#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include <offload/export.h>

namespace offload {

/// What bounds the time of a call.
enum class Bound : std::uint8_t {
  compute,  ///< the device computes for at least 95% of the time
  launches, ///< the same, but more than half of that is the least time between two nodes: launch and interpreter
  link,     ///< the device does not, and copies are at work for as long
  disk,     ///< the same, but more than half of that is for weights of a file, which is slower than the link
  neither,  ///< each waits for the other, as where the ring is short, or both for callers
};

OFFLOAD_API const char* to_string(Bound bound);

/// A budget, and what is predicted under it.
struct SweepPoint {
  std::uint64_t vram = 0;
  double time_us = 0;               ///< of a call; of several callers, of a round, in which each makes one
  std::uint64_t streamed_bytes = 0; ///< over the link, per call
  Bound bound = Bound::neither;
};

/// Time against budget.
struct Sweep {
  std::string device;
  std::string machine;            ///< whose costs these are
  std::vector<SweepPoint> points; ///< from the smallest budget to the largest

  /// The budget beyond which more of it saves less: the point that lies farthest below the chord from the first point
  /// to the last, on a plot in which both budgets and times are scaled to [0, 1] between these two. The distance that
  /// counts is 1 - x - y, the vertical one. None where it is nowhere above 0.1, or the last is no faster than the
  /// first.
  std::optional<std::size_t> knee;
};

/// The smallest budget that was found for a wanted time. A larger budget is not always faster: the planner takes the
/// best of some forty ways to use each.
struct Fit {
  std::optional<SweepPoint> smallest; ///< of all that were tried, that is fast enough
  Sweep tried;
};

} // namespace offload
