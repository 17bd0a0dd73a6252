#include <offload/plan/simulate.h>

#include <algorithm>
#include <deque>
#include <iterator>
#include <numeric>
#include <random>
#include <utility>

#include <offload/error.h>
#include <offload/plan/clock_device.h>
#include <offload/ring/scheduler.h>

namespace offload {

namespace {

/// Callers of one method, on a device that keeps time. See simulate().
class Simulation {
 public:
  Simulation(const Pass& pass, const Residency& residency, const MachineProfile& machine, Callers callers);

  /// Until there are as many outputs more as there are callers.
  void run_round();

  /// What has been until now; bytes of all calls.
  Simulated total() const { return {device_.now_us(), device_.stall_us(), scheduler_.slots().bytes_used()}; }
  std::vector<std::uint64_t> layout() const { return scheduler_.layout(); }

 private:
  enum class Doing {
    begin,  ///< a call
    step,   ///< enqueues the next one
    arrive, ///< says that copies have arrived
    output, ///< has it
    queue,  ///< for a lane
    wait,   ///< for other calls
  };

  struct Caller {
    Doing doing = Doing::begin;
    double at_us = 0;      ///< it does that
    MomentPtr not_before;  ///< this
    ArrivalPtr copies;     ///< that it waits for
    int lane = 0;          ///< of its call
    std::size_t step = 0;  ///< of the pass, that comes next
    std::size_t lease = 0; ///< of the sequence, that comes next
  };

  /// A step that streams, or any number in a row that do not.
  struct TimedStep {
    double compute_us;
    double host_us; ///< that a caller takes
    bool streams;
  };

  Caller* next_caller();
  void go_on(Caller& caller);
  void begin(Caller& caller);
  void enqueue_step(Caller& caller);
  bool lease(Caller& caller);
  void end(Caller& caller);
  void issue();
  void look_again();
  double copy_us(WeightId weight, std::uint64_t bytes) const;
  bool are_neighbours(const Fetch& a, const Fetch& b) const;

  const WeightTable& weights_;
  const MachineProfile& machine_;
  const std::shared_ptr<const Sequence> sequence_;
  const double away_us_;
  std::vector<TimedStep> steps_;
  std::minstd_rand random_;
  Scheduler scheduler_;
  ClockDevice device_;
  std::vector<Caller> callers_;
  std::vector<int> free_lanes_;
  std::deque<Caller*> queue_;
  std::vector<Batch> batches_; // decided on, and not issued yet
  std::size_t outputs_ = 0;
  bool awaits_copies_ = false; // one of the callers, for all
};

Simulation::Simulation(const Pass& pass, const Residency& residency, const MachineProfile& machine, Callers callers)
    : weights_(*pass.weights),
      machine_(machine),
      sequence_(std::make_shared<const Sequence>(streamed_sequence(pass, residency))),
      away_us_(callers.count > 1 ? callers.away_us : 0),
      scheduler_(all_resident(weights_).bytes, residency.ring_bytes, kBatchBytes, callers.lanes),
      device_(callers.lanes),
      callers_(static_cast<std::size_t>(callers.count)) {
  const double host_us = callers.count > 1 ? machine.node_overhead_us : 0;
  for (const PlanStep& step : pass.steps) {
    const bool streams = std::any_of(step.weights.begin(), step.weights.end(),
                                     [&](WeightId weight) { return !residency.stays(weight); });
    if (streams || steps_.empty() || steps_.back().streams) {
      steps_.push_back({0, 0, streams});
    }
    steps_.back().compute_us += std::max(step.compute_us, machine.node_overhead_us - host_us);
    steps_.back().host_us += host_us;
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
      awaits_copies_ = false;
      scheduler_.arrive(caller.lane, caller.copies, batches_);
      caller.doing = Doing::step;
      look_again();
      break;
    case Doing::output:
      ++outputs_;
      caller.doing = Doing::begin;
      caller.at_us += std::uniform_real_distribution<>(0, away_us_)(random_);
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
  device_.compute(caller.lane, step.compute_us);
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
    throw Error("no place for " + weights_[step.front()].name + " in the ring");
  }
  if (outcome == Scheduler::Outcome::leased) {
    for (const WeightId weight : step) {
      device_.wait_arrived(caller.lane, scheduler_.slots().arrival(weight)->fence);
    }
    return true;
  }
  if (outcome == Scheduler::Outcome::waits_for_copies && !awaits_copies_) {
    awaits_copies_ = true;
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
    std::uint64_t bytes = 0; // of neighbours: one copy
    for (std::size_t i = 0; i < batch.fetches.size(); ++i) {
      bytes += batch.fetches[i].bytes;
      if (i + 1 == batch.fetches.size() || !are_neighbours(batch.fetches[i], batch.fetches[i + 1])) {
        device_.copy(copy_us(batch.fetches[i].weight, std::exchange(bytes, 0)));
      }
    }
    batch.arrival->fence = device_.record_arrived();
  }
  if (!batches_.empty()) {
    batches_.clear();
    look_again();
  }
}

double Simulation::copy_us(WeightId weight, std::uint64_t bytes) const {
  const Source& source = weights_[weight].source;
  const double bytes_per_us = source.kind == Source::Kind::file ? machine_.file_bytes_per_us
                              : source.direct                   ? machine_.link_bytes_per_us
                                                                : machine_.host_copy_bytes_per_us;
  return machine_.copy_overhead_us + static_cast<double>(bytes) / std::min(machine_.link_bytes_per_us, bytes_per_us);
}

bool Simulation::are_neighbours(const Fetch& a, const Fetch& b) const {
  const Source& first = weights_[a.weight].source;
  const Source& second = weights_[b.weight].source;
  return a.place + a.bytes == b.place && first.kind == Source::Kind::memory && second.kind == first.kind &&
         first.direct == second.direct && first.offset + a.bytes == second.offset;
}

} // namespace

std::uint64_t bytes_of(const Residency& residency) {
  return std::accumulate(residency.bytes.begin(), residency.bytes.end(), residency.ring_bytes);
}

std::uint64_t bytes_taken_on_host(const Residency& residency, const WeightTable& weights) {
  std::uint64_t total = residency.ring_bytes;
  for (WeightId weight = 0; weight < weights.size(); ++weight) {
    total += weights[weight].source.kind == Source::Kind::file ? residency.bytes[weight] : 0;
  }
  return total;
}

Simulated simulate(const Pass& pass, const Residency& residency, const MachineProfile& machine, Callers callers,
                   std::size_t most_rounds) {
  Simulation simulation(pass, residency, machine, callers);
  std::vector<Simulated> totals = {simulation.total()};
  std::vector<std::vector<std::uint64_t>> layouts;
  std::size_t period = 0;
  if (callers.count > 1) {
    const std::size_t steps = pass.steps.size() * static_cast<std::size_t>(callers.count);
    const std::size_t rounds = std::min(most_rounds, std::clamp<std::size_t>(20'000 / (steps + 1), 3, 9));
    while (totals.size() <= rounds) {
      simulation.run_round();
      totals.push_back(simulation.total());
    }
    period = rounds - rounds / 3;
  } else {
    // The first call fills the ring. Once one ends as an earlier one did, all that comes repeats what came between.
    // That may take dozens of calls; long ones are not given as many.
    const std::size_t most = std::min(most_rounds, std::clamp<std::size_t>(50'000 / (pass.steps.size() + 1), 24, 96));
    while ((period == 0 || layouts.size() < 3) && layouts.size() < most) {
      simulation.run_round();
      totals.push_back(simulation.total());
      const auto now = simulation.layout();
      if (const auto same = std::find(layouts.begin(), layouts.end(), now); period == 0 && same != layouts.end()) {
        period = static_cast<std::size_t>(layouts.end() - same);
      }
      layouts.push_back(now);
    }
    period = period == 0 ? layouts.size() / 2 : period;
  }
  const Simulated& first = totals[totals.size() - 1 - period];
  const Simulated& last = totals.back();
  const std::size_t calls = period * static_cast<std::size_t>(callers.count);
  return {(last.time_us - first.time_us) / static_cast<double>(period),
          (last.stall_us - first.stall_us) / static_cast<double>(calls),
          (last.streamed_bytes - first.streamed_bytes) / calls, period};
}

} // namespace offload
