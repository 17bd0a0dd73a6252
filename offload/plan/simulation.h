#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <random>
#include <vector>

#include <offload/plan/clock_device.h>
#include <offload/plan/simulate.h>
#include <offload/ring/scheduler.h>

namespace offload {

/// What a simulation did, from its beginning.
struct Recording {
  std::vector<ClockDevice::Activity> activities; ///< a copy by its index in `copies`, compute by its first step
  std::vector<std::vector<Fetch>> copies;        ///< what came in each
};

/// What it costs to bring weights.
struct CopyCosts {
  const WeightTable& weights;
  const MachineProfile& machine;

  /// Of one copy, in which `weight` comes first.
  double copy_us(WeightId weight, std::uint64_t bytes) const;

  /// True when one copy brings both.
  bool are_neighbours(const Fetch& a, const Fetch& b) const;
};

/// True when a weight of it does not stay.
bool streams(const PlanStep& step, const Residency& residency);

/// What happened from `begin_us` to `end_us` of a simulation of one caller, which computed all the time but for stalls.
Timeline cut_timeline(const Recording& recording, const Pass& pass, const Residency& residency, double begin_us,
                      double end_us);

/// Callers of one method, on a device that keeps time. See simulate().
class Simulation {
 public:
  Simulation(const Pass& pass, const Residency& residency, const MachineProfile& machine, Callers callers,
             Recording* recording = nullptr);

  /// Until there are as many outputs more as there are callers.
  void run_round();

  /// What has been until now; bytes of all calls.
  Simulated total() const {
    return {device_.now_us(),    device_.stall_us(),   scheduler_.slots().bytes_used(), 1,
            device_.copies_us(), device_.computes_us()};
  }
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
    std::size_t first; ///< of the pass
    double compute_us;
    double host_us; ///< that a caller takes
    bool streams;
  };

  /// Of a caller, between an output and the next call.
  struct Away {
    double draw_us() { return between(random); }

    std::uniform_real_distribution<> between;
    std::minstd_rand random;
  };

  Caller* next_caller();
  void go_on(Caller& caller);
  void begin(Caller& caller);
  void enqueue_step(Caller& caller);
  bool lease(Caller& caller);
  void end(Caller& caller);
  void issue();
  void look_again();

  const CopyCosts costs_;
  const std::shared_ptr<const Sequence> sequence_;
  std::vector<TimedStep> steps_;
  Away away_;
  Scheduler scheduler_;
  ClockDevice device_;
  std::vector<Caller> callers_;
  std::vector<int> free_lanes_;
  std::deque<Caller*> queue_;
  std::vector<Batch> batches_; // decided on, and not issued yet
  std::size_t outputs_ = 0;
  Recording* const recording_; // null: none
};

} // namespace offload
