#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include <offload/advice.h>
#include <offload/plan/sweep.h>

namespace offload {

/// What calls took, each, on average. On a GPU a call returns before the device has done it, and between calls the link
/// may work ahead: so what a call takes is known to lie between two times.
struct RunFigures {
  std::uint64_t calls = 0;
  double least_us = 0; ///< that a thread was in it, once it was its turn
  double most_us = 0;  ///< from one to the next of the same caller
  double stall_us = 0; ///< that it waited for copies
  std::uint64_t crossed_bytes = 0;
  std::uint64_t cached_bytes = 0; ///< that were to cross, and were read in the page cache
};

/// What was predicted for them.
struct Expected {
  Simulated round;
  Binding binding;
  int callers = 1;
};

/// Which cost is off is told from stalls where calls are slower: what they stall more for is copies, else it is the
/// device. Where they are faster, it is what takes longer by the profile than calls did.
Deviation deviation_of(const RunFigures& run, const Expected& expected);

/// What binds the run: as predicted, unless it deviates; then by how much of it is stalled.
Bound bound_of(const RunFigures& run, const Expected& expected, const Deviation& deviation);

/// Other plans than that of a run. What is null does not apply.
struct Alternatives {
  SweepPoint now;
  std::uint64_t most_vram = 0; ///< the largest budget that is of use, and that there is
  PointAt with_budget;
  std::function<SweepPoint()> with_faster_copies;
  std::function<SweepPoint()> with_twice_the_rows;
};

/// What helps by at least 5%, what helps most first: the largest budget; the one beyond which more saves less, if it is
/// another; faster copies; more rows. It makes some ten plans.
std::vector<Advice> advise(const Alternatives& alternatives, Binding binding);

/// Sentences for people.
std::string describe(Bound bound);
std::string describe(const Advice& advice);
std::string describe(const Deviation& deviation);

} // namespace offload
