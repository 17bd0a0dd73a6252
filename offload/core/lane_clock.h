#pragma once

#include <optional>
#include <vector>

namespace offload {

/// A stretch of a call. All in microseconds.
struct Lap {
  double device_us = 0; ///< from when the lane had come to its beginning until it came to its end
  double host_us = 0;   ///< that the thread of the call needed to enqueue it; 0 on a host that is its own device
};

struct Laps {
  std::vector<Lap> each;
  bool host_waited = false; ///< for the device, at least in part of them: nobody knows how long it takes itself
};

/// Takes the time of stretches of a call, on its lane and on its thread, which is the only one that begins and ends
/// them. The marks delay the lane by microseconds each.
class LaneClock {
 public:
  virtual ~LaneClock() = default;
  LaneClock() = default;
  LaneClock(const LaneClock&) = delete;
  LaneClock& operator=(const LaneClock&) = delete;

  virtual void begin_lap() = 0;
  virtual void end_lap() = 0;

  /// The laps, in their order, once the call has ended. None while the lane has not come to the end of the last one;
  /// does not wait.
  virtual std::optional<Laps> read() = 0;
};

} // namespace offload
