#pragma once

#include <vector>

#include <offload/core/lane_clock.h>
#include <offload/core/words.h>
#include <offload/plan/pass.h>
#include <offload/timeline.h>

namespace offload {

/// Copies that were under way together.
struct RecordedCopies {
  Step weights;
  Span time; ///< the end is infinite where it is not known
};

/// When a call computed, and when weights were copied meanwhile. Times count from when it began on the device.
struct RecordedCall {
  std::vector<LapTimes> laps;
  std::vector<RecordedCopies> copies;
};

/// As a picture, with the steps of `pass` by the laps in which `residency` had them.
Timeline timeline_of(const RecordedCall& call, const Pass& pass, const Residency& residency);

} // namespace offload
