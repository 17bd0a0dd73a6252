#include <offload/timeline.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include <offload/plan/recorded_call.h>
#include <offload/plan/simulation.h>

namespace offload {

const char* to_string(Timeline::Lane lane) {
  switch (lane) {
    case Timeline::Lane::link:
      return "link";
    case Timeline::Lane::compute:
      return "compute";
    case Timeline::Lane::stall:
      return "stall";
    case Timeline::Lane::host:
      return "host";
  }
  return "unknown";
}

double Timeline::busy_us(Lane lane) const {
  double us = 0;
  for (const Entry& entry : entries) {
    us += entry.lane == lane ? entry.us : 0;
  }
  return us;
}

namespace {

constexpr double kShown = 1e-3; // microseconds of what took no time

/// Writes down what lies in a span of time, with the weights by name.
class TimelineWriter {
 public:
  TimelineWriter(const WeightTable& weights, double begin_us, double end_us)
      : weights_(weights), begin_us_(begin_us), end_us_(end_us) {
    timeline_.time_us = end_us - begin_us;
  }

  /// Of it, what lies in the span; of bytes, the same share.
  void write(Timeline::Lane lane, double begin_us, double us, const Step& weights) {
    const double begin = std::max(begin_us, begin_us_);
    const double end = std::min(begin_us + us, end_us_);
    if (begin >= end) {
      return;
    }
    Timeline::Entry entry{lane, begin - begin_us_, end - begin, {}, 0};
    for (const WeightId weight : weights) {
      entry.weights.push_back(weights_[weight].name);
      entry.bytes += weights_[weight].bytes;
    }
    if (lane == Timeline::Lane::link) {
      entry.bytes = static_cast<std::uint64_t>(std::llround(static_cast<double>(entry.bytes) * (entry.us / us)));
    }
    timeline_.entries.push_back(std::move(entry));
  }

  Timeline timeline() && {
    std::stable_sort(timeline_.entries.begin(), timeline_.entries.end(),
                     [](const Timeline::Entry& a, const Timeline::Entry& b) {
                       return std::pair(a.lane, a.begin_us) < std::pair(b.lane, b.begin_us);
                     });
    return std::move(timeline_);
  }

 private:
  const WeightTable& weights_;
  const double begin_us_;
  const double end_us_;
  Timeline timeline_;
};

} // namespace

Timeline cut_timeline(const Recording& recording, const Pass& pass, const Residency& residency, double begin_us,
                      double end_us) {
  TimelineWriter writer(*pass.weights, begin_us, end_us);
  double computed_us = 0; // until when
  for (const ClockDevice::Activity& activity : recording.activities) {
    if (activity.begin_us >= end_us || activity.begin_us + activity.us <= begin_us) {
      continue;
    }
    if (activity.kind == ClockDevice::Activity::Kind::copy) {
      Step copied;
      for (const Fetch& fetch : recording.copies[activity.number]) {
        copied.push_back(fetch.weight);
      }
      writer.write(Timeline::Lane::link, activity.begin_us, activity.us, copied);
      continue;
    }
    Step awaited;
    for (const WeightId weight : pass.steps[activity.number].weights) {
      if (!residency.stays(weight)) {
        awaited.push_back(weight);
      }
    }
    computed_us = std::max(computed_us, begin_us);
    writer.write(Timeline::Lane::stall, computed_us, activity.begin_us - computed_us, awaited);
    computed_us = activity.begin_us;
    // Steps that do not stream are simulated as one.
    std::size_t last = activity.number;
    while (!streams(pass.steps[last], residency) && last + 1 < pass.steps.size() &&
           !streams(pass.steps[last + 1], residency)) {
      ++last;
    }
    const auto us_of = [&](std::size_t step) {
      return std::max(pass.steps[step].compute_us, pass.steps[step].launch_us);
    };
    double each_us = 0; // the host launches ahead of all of them together
    for (std::size_t step = activity.number; step <= last; ++step) {
      each_us += us_of(step);
    }
    for (std::size_t step = activity.number; step <= last; ++step) {
      const double us = each_us > 0 ? us_of(step) * activity.us / each_us : 0;
      writer.write(Timeline::Lane::compute, computed_us, us, pass.steps[step].weights);
      computed_us += us;
    }
    computed_us = activity.begin_us + activity.us;
  }
  return std::move(writer).timeline();
}

Timeline timeline_of(const RecordedCall& call, const Pass& pass, const Residency& residency) {
  const double end_us = call.laps.empty() ? 0 : call.laps.back().device.end_us;
  TimelineWriter writer(*pass.weights, 0, end_us);
  double copied_us = -std::numeric_limits<double>::infinity(); // until when
  for (const RecordedCopies& copies : call.copies) {           // several may be under way at the same time
    const double begin_us = std::max(copies.time.begin_us, copied_us);
    const double known_us = std::min(copies.time.end_us, std::max(end_us, begin_us));
    writer.write(Timeline::Lane::link, begin_us, std::max(known_us - begin_us, kShown), copies.weights);
    copied_us = std::max(copied_us, known_us);
  }
  std::vector<std::size_t> begins = lap_begins(pass, residency);
  begins.resize(call.laps.size(), pass.steps.size());
  begins.push_back(pass.steps.size());
  for (std::size_t lap = 0; lap < call.laps.size(); ++lap) {
    const LapTimes& times = call.laps[lap];
    Step read;
    Step awaited;
    for (std::size_t step = begins[lap]; step < begins[lap + 1]; ++step) {
      for (const WeightId weight : pass.steps[step].weights) {
        read.push_back(weight);
        if (step == begins[lap] && !residency.stays(weight)) {
          awaited.push_back(weight);
        }
      }
    }
    if (lap > 0) {
      const double stalled_us = call.laps[lap - 1].device.end_us;
      writer.write(Timeline::Lane::stall, stalled_us, times.device.begin_us - stalled_us, awaited);
    }
    writer.write(Timeline::Lane::compute, times.device.begin_us, times.device.us(), read);
    writer.write(Timeline::Lane::host, times.host.begin_us, times.host.us(), read);
  }
  return std::move(writer).timeline();
}

} // namespace offload
