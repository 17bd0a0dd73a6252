#include <offload/plan/simulation.h>

#include <algorithm>
#include <iterator>
#include <optional>

#include <offload/error.h>

namespace offload {

bool streams(const PlanStep& step, const Residency& residency) {
  return std::any_of(step.weights.begin(), step.weights.end(),
                     [&](WeightId weight) { return !residency.stays(weight); });
}

Simulation::Simulation(const Pass& pass, const Residency& residency, const MachineProfile& machine, Callers callers,
                       Recording* recording)
    : costs_{*pass.weights, machine},
      sequence_(std::make_shared<const Sequence>(streamed_sequence(pass, residency))),
      away_{std::uniform_real_distribution<>(0, callers.count > 1 ? callers.away_us : 0), {}},
      scheduler_(all_resident(*pass.weights).bytes, residency.ring_bytes, kBatchBytes, callers.lanes),
      device_(callers.lanes, recording ? &recording->activities : nullptr),
      callers_(static_cast<std::size_t>(callers.count)),
      recording_(recording) {
  for (std::size_t i = 0; i < pass.steps.size(); ++i) {
    const PlanStep& step = pass.steps[i];
    const bool is_streamed = streams(step, residency);
    if (is_streamed || steps_.empty() || steps_.back().streams) {
      steps_.push_back({i, 0, 0, is_streamed});
    }
    steps_.back().compute_us += step.compute_us;
    steps_.back().host_us += std::max(step.launch_us, callers.count > 1 ? machine.node_overhead_us : 0);
  }
  for (TimedStep& step : steps_) { // one caller is ahead: see simulate()
    step.compute_us = callers.count > 1 ? step.compute_us : std::max(step.compute_us, step.host_us);
    step.host_us = callers.count > 1 ? step.host_us : 0;
  }
  for (int lane = callers.lanes; lane > 0; --lane) {
    free_lanes_.push_back(lane - 1);
  }
}

void Simulation::run_round() {
  const std::size_t end = outputs_ + callers_.size();
  while (outputs_ < end) {
    Caller* next = next_caller();
    const std::optional<double> device_us = device_.next_us();
    if (device_us && (!next || *device_us < next->at_us)) {
      device_.advance(*device_us);
      continue;
    }
    if (!next) {
      throw Error("all calls of a simulation wait for each other");
    }
    device_.advance(std::max(next->at_us, device_.now_us()));
    go_on(*next);
  }
}

/// The first that may go on.
Simulation::Caller* Simulation::next_caller() {
  Caller* next = nullptr;
  for (Caller& caller : callers_) {
    const bool may_go_on = caller.doing != Doing::queue && caller.doing != Doing::wait &&
                           (!caller.not_before || caller.not_before->reached());
    next = may_go_on && (!next || caller.at_us < next->at_us) ? &caller : next;
  }
  return next;
}

void Simulation::go_on(Caller& caller) {
  caller.at_us = device_.now_us();
  caller.not_before.reset();
  switch (caller.doing) {
    case Doing::begin:
      begin(caller);
      break;
    case Doing::arrive:
      scheduler_.arrive(caller.lane, caller.copies, batches_);
      caller.doing = Doing::step;
      look_again();
      break;
    case Doing::output:
      ++outputs_;
      caller.doing = Doing::begin;
      caller.at_us += away_.draw_us();
      break;
    case Doing::step:
      if (caller.step < steps_.size()) {
        enqueue_step(caller);
      } else {
        end(caller);
      }
      break;
    case Doing::queue:
    case Doing::wait:
      break;
  }
  issue();
}

void Simulation::begin(Caller& caller) {
  if (free_lanes_.empty()) {
    caller.doing = Doing::queue;
    queue_.push_back(&caller);
    return;
  }
  const auto last = std::find(free_lanes_.begin(), free_lanes_.end(), caller.lane);
  const auto lane = last == free_lanes_.end() ? std::prev(last) : last;
  caller.lane = *lane;
  free_lanes_.erase(lane);
  caller.step = 0;
  caller.lease = 0;
  caller.doing = Doing::step;
  scheduler_.begin(caller.lane, sequence_, batches_);
  caller.at_us += steps_.empty() ? 0 : steps_.front().host_us;
}

void Simulation::enqueue_step(Caller& caller) {
  const TimedStep& step = steps_[caller.step];
  if (step.streams && !lease(caller)) {
    return;
  }
  device_.compute(caller.lane, step.compute_us, step.first);
  if (step.streams) {
    scheduler_.release(caller.lane, (*sequence_)[caller.lease], device_.record_used(caller.lane), batches_);
    ++caller.lease;
    look_again();
  }
  ++caller.step;
  caller.at_us += step.host_us;
}

bool Simulation::lease(Caller& caller) {
  const Step& step = (*sequence_)[caller.lease];
  const Scheduler::Outcome outcome = scheduler_.acquire(caller.lane, step, batches_);
  issue();
  if (outcome == Scheduler::Outcome::refused) {
    throw Error("no place for " + costs_.weights[step.front()].name + " in the ring");
  }
  if (outcome == Scheduler::Outcome::leased) {
    for (const WeightId weight : step) {
      device_.wait_arrived(caller.lane, scheduler_.slots().arrival(weight)->fence);
    }
    return true;
  }
  const bool awaits_copies = std::any_of(callers_.begin(), callers_.end(), // for all of them
                                         [](const Caller& other) { return other.doing == Doing::arrive; });
  if (outcome == Scheduler::Outcome::waits_for_copies && !awaits_copies) {
    caller.copies = scheduler_.awaited(caller.lane, step);
    caller.not_before = std::static_pointer_cast<Moment>(caller.copies->fence);
    caller.doing = Doing::arrive;
  } else {
    caller.doing = Doing::wait;
  }
  return false;
}

void Simulation::end(Caller& caller) {
  scheduler_.end(caller.lane, batches_);
  look_again();
  caller.not_before = device_.record_used(caller.lane);
  caller.doing = Doing::output;
  free_lanes_.push_back(caller.lane);
  if (!queue_.empty()) {
    queue_.front()->doing = Doing::begin;
    queue_.front()->at_us = device_.now_us();
    queue_.pop_front();
  }
}

/// Something has changed for those who wait for other calls.
void Simulation::look_again() {
  for (Caller& caller : callers_) {
    if (caller.doing == Doing::wait) {
      caller.doing = Doing::step;
      caller.at_us = device_.now_us();
    }
  }
}

void Simulation::issue() {
  for (const Batch& batch : batches_) {
    std::for_each(batch.readers.begin(), batch.readers.end(), [&](const FencePtr& used) { device_.wait_used(used); });
    for (auto first = batch.fetches.begin(); first != batch.fetches.end();) {
      auto end = std::next(first);
      std::uint64_t bytes = first->bytes;
      for (; end != batch.fetches.end() && costs_.are_neighbours(*std::prev(end), *end); ++end) {
        bytes += end->bytes;
      }
      device_.copy(costs_.copy_us(first->weight, bytes), recording_ ? recording_->copies.size() : 0);
      if (recording_) {
        recording_->copies.emplace_back(first, end);
      }
      first = end;
    }
    batch.arrival->fence = device_.record_arrived();
  }
  if (!batches_.empty()) {
    batches_.clear();
    look_again();
  }
}

double CopyCosts::copy_us(WeightId weight, std::uint64_t bytes) const {
  const Source& source = weights[weight].source;
  const double bytes_per_us = source.kind == Source::Kind::file ? machine.file_bytes_per_us
                              : source.direct                   ? machine.link_bytes_per_us
                                                                : machine.host_copy_bytes_per_us;
  return machine.copy_overhead_us + static_cast<double>(bytes) / std::min(machine.link_bytes_per_us, bytes_per_us);
}

bool CopyCosts::are_neighbours(const Fetch& a, const Fetch& b) const {
  const Source& first = weights[a.weight].source;
  const Source& second = weights[b.weight].source;
  return a.place + a.bytes == b.place && first.kind == Source::Kind::memory && second.kind == first.kind &&
         first.direct == second.direct && first.offset + a.bytes == second.offset;
}

} // namespace offload
