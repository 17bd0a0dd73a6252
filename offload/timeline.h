#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <offload/export.h>

namespace offload {

/// What link and device do during one call: by simulation, from the output of the call before to its own; or as it was
/// recorded, from when the call began on the device. Times are microseconds.
struct Timeline {
  enum class Lane : std::uint8_t {
    link,    ///< copies of weights, also those that are brought ahead for the next call
    compute, ///< steps, each a node that reads weights
    stall,   ///< nothing is computed, since the next step waits for copies
    host,    ///< the thread of the call enqueues; only as recorded, on a GPU
  };

  /// Entries of one lane do not overlap. What begins before the call, or ends after it, is cut off there.
  struct Entry {
    Lane lane = Lane::link;
    double begin_us = 0;
    double us = 0;
    std::vector<std::string> weights; ///< that are copied, that the step reads, or that it waits for; none: rows, read
                                      ///< in place or, as recorded, what comes before any weight
    std::uint64_t bytes = 0;          ///< of a copy, those that come in this time; of others, those of `weights`
  };

  double time_us = 0;         ///< of the call
  std::vector<Entry> entries; ///< by lane, and in order of time

  /// How long a lane is at work.
  OFFLOAD_API double busy_us(Lane lane) const;
};

OFFLOAD_API const char* to_string(Timeline::Lane lane);

} // namespace offload
