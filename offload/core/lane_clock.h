#pragma once

#include <chrono>
#include <functional>
#include <optional>
#include <utility>
#include <vector>

#include <offload/core/mark.h>

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

/// From when to when, in microseconds since a call began on the device.
struct Span {
  double begin_us = 0;
  double end_us = 0;

  double us() const { return end_us - begin_us; }
};

/// When a lap was.
struct LapTimes {
  Span device;
  Span host; ///< when the thread of the call enqueued it; nothing on a host that is its own device
};

/// Takes the time of stretches of a call, on its lane and on its thread, which is the only one that begins and ends
/// them. On a device each mark delays the lane by microseconds.
class LaneClock {
 public:
  enum class Thread { computes, enqueues };

  /// `mark` gives what comes after all that the lane has been given so far.
  LaneClock(std::function<MarkPtr()> mark, Thread thread) : mark_(std::move(mark)), thread_(thread) {}

  void begin_lap() { begins_.push_back(take()); }
  void end_lap() { ends_.push_back(take()); }

  /// Whether the call has ended, and the lane has come to the end of its last lap. The others ask for that.
  bool is_over() const {
    return !ends_.empty() && ends_.size() == begins_.size() && ends_.back().on_lane->is_reached();
  }

  /// In their order.
  Laps laps() const;
  std::vector<LapTimes> times() const;

  /// When `mark` came, in microseconds since the first lap began on the device. It has been reached.
  double us_of(const Mark& mark) const { return mark.us_after(*begins_.front().on_lane); }

 private:
  struct Moment {
    MarkPtr on_lane;
    std::chrono::steady_clock::time_point on_thread;
  };

  Moment take() const { return {mark_(), std::chrono::steady_clock::now()}; }
  Lap between(const Moment& begin, const Moment& end) const;

  const std::function<MarkPtr()> mark_;
  const Thread thread_;
  std::vector<Moment> begins_;
  std::vector<Moment> ends_;
};

} // namespace offload
