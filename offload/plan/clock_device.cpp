#include <offload/plan/clock_device.h>

#include <algorithm>
#include <utility>

namespace offload {

MomentPtr ClockDevice::record(std::size_t stream, int channel) {
  auto moment = std::make_shared<Moment>(channel);
  enqueue(stream, {Operation::Kind::record, 0, moment});
  return moment;
}

void ClockDevice::enqueue(std::size_t stream, Operation operation) {
  streams_[stream].operations.push_back(std::move(operation));
  if (streams_[stream].operations.size() == 1) {
    ready_.push_back(stream);
    run_ready();
  }
}

void ClockDevice::run_ready() {
  while (!ready_.empty()) {
    const std::size_t stream = ready_.back();
    ready_.pop_back();
    run(stream);
  }
}

/// As far as it goes now.
void ClockDevice::run(std::size_t stream) {
  Stream& self = streams_[stream];
  while (!self.busy && !self.operations.empty()) {
    const Operation& first = self.operations.front();
    if (first.kind == Operation::Kind::timed) {
      start(stream, first);
      return;
    }
    if (first.kind == Operation::Kind::wait && !first.moment->reached_) {
      first.moment->waiting_.push_back(stream);
      self.waits_since_us = now_us_;
      return;
    }
    if (first.kind == Operation::Kind::record) {
      first.moment->reached_ = true;
      for (const std::size_t other : first.moment->waiting_) {
        stall_us_ += other == kCopies ? 0 : now_us_ - streams_[other].waits_since_us;
        ready_.push_back(other);
      }
    }
    self.operations.pop_front();
  }
}

void ClockDevice::start(std::size_t stream, const Operation& operation) {
  const bool copies = stream == kCopies;
  const double begin_us = copies ? now_us_ : std::max(now_us_, processor_free_us_);
  if (!copies) {
    processor_free_us_ = begin_us + operation.us;
  }
  (copies ? copies_us_ : computes_us_) += operation.us;
  if (activities_) {
    activities_->push_back(
        {copies ? Activity::Kind::copy : Activity::Kind::compute, operation.number, begin_us, operation.us});
  }
  streams_[stream].busy = true;
  completions_.push({begin_us + operation.us, started_++, stream});
}

std::optional<double> ClockDevice::next_us() const {
  return completions_.empty() ? std::nullopt : std::optional(completions_.top().us);
}

void ClockDevice::advance(double us) {
  now_us_ = us;
  while (!completions_.empty() && completions_.top().us <= us) {
    const std::size_t stream = completions_.top().stream;
    completions_.pop();
    streams_[stream].busy = false;
    streams_[stream].operations.pop_front();
    ready_.push_back(stream);
    run_ready();
  }
}

} // namespace offload
