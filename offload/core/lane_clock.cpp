#include <offload/core/lane_clock.h>

#include <algorithm>
#include <limits>

namespace offload {

namespace {

double us_between(std::chrono::steady_clock::time_point begin, std::chrono::steady_clock::time_point end) {
  return std::chrono::duration<double, std::micro>(end - begin).count();
}

} // namespace

Lap LaneClock::between(const Moment& begin, const Moment& end) const {
  return {end.on_lane->us_after(*begin.on_lane),
          thread_ == Thread::computes ? 0 : us_between(begin.on_thread, end.on_thread)};
}

Laps LaneClock::laps() const {
  constexpr double kMost = 0.9; // of a time is all of it
  Laps laps;
  double device_us = 0;
  for (std::size_t i = 0; i < begins_.size(); ++i) {
    laps.each.push_back(between(begins_[i], ends_[i]));
    device_us += laps.each.back().device_us;
  }
  // Where the device has stalled, a host that does not wait for it is done sooner.
  const Lap all = between(begins_.front(), ends_.back());
  laps.host_waited = device_us < kMost * all.device_us && all.host_us > kMost * all.device_us;
  return laps;
}

/// The two clocks are compared where they are closest: no lane has come to a mark before the thread has enqueued it,
/// and one that has nothing to do comes to it at once.
std::vector<LapTimes> LaneClock::times() const {
  const auto host_us_of = [&](const Moment& moment) { return us_between(begins_.front().on_thread, moment.on_thread); };
  const auto span_of = [](double begin_us, double end_us) { return Span{begin_us, end_us}; };
  std::vector<LapTimes> times;
  double ahead_us = std::numeric_limits<double>::infinity();
  for (std::size_t i = 0; i < begins_.size(); ++i) {
    LapTimes lap{span_of(us_of(*begins_[i].on_lane), us_of(*ends_[i].on_lane)), {}};
    if (thread_ == Thread::enqueues) {
      lap.host = span_of(host_us_of(begins_[i]), host_us_of(ends_[i]));
      ahead_us = std::min({ahead_us, lap.device.begin_us - lap.host.begin_us, lap.device.end_us - lap.host.end_us});
    }
    times.push_back(lap);
  }
  if (thread_ == Thread::enqueues) {
    for (LapTimes& lap : times) {
      lap.host.begin_us += ahead_us;
      lap.host.end_us += ahead_us;
    }
  }
  return times;
}

} // namespace offload
