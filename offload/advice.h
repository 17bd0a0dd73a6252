#pragma once

#include <cstdint>

#include <offload/export.h>
#include <offload/sweep.h>

namespace offload {

/// What could be otherwise.
enum class Change : std::uint8_t {
  budget, ///< a larger vram_budget
  link,   ///< a link that is twice as fast
  disk,   ///< the same of the disk that weights are read from
  rows,   ///< twice the rows in a call
};

OFFLOAD_API const char* to_string(Change change);

/// A change that would make calls faster, and what is predicted with it.
struct Advice {
  Change change = Change::budget;
  SweepPoint then; ///< with the budget that it takes
  double gain = 1; ///< how many times as fast calls are; with twice the rows, how many times as many rows in the time
};

/// A run that takes another time than predicted: more than 1.5 times as long, or less than that part of it.
struct Deviation {
  double factor = 1;              ///< measured over predicted; 1: it agrees, or that can not be told
  Bound cost = Bound::neither;    ///< which cost is off; neither: that can not be told
  std::uint64_t cached_bytes = 0; ///< per call, of weights that were in the page cache, where that is why
  double bytes_per_us = 0;        ///< of copies: where they are slower, at the most; faster, at the least; 0: not known
  double profile_bytes_per_us = 0; ///< what was predicted with; 0: not known
};

} // namespace offload
