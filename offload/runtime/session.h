#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <offload/core/promises.h>
#include <offload/module.h>
#include <offload/profile.h>
#include <offload/runtime/adopt.h>
#include <offload/runtime/executor.h>
#include <offload/runtime/model.h>
#include <offload/runtime/plan_state.h>
#include <offload/runtime/sequences.h>

namespace offload {

/// A module that has been taken in, and its calls, one beside the other. Any thread may call.
///
/// Calls come through the gate of a transport, each with a lane, and show what calls take. Who has a budget decides
/// what is placed: OwnSession, with one of its own, or a PooledSession's pool.
class Session {
 public:
  virtual ~Session();
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  c10::IValue run_method(const std::string& name, std::vector<c10::IValue> inputs, const Kwargs& kwargs);
  c10::IValue attr(const std::string& name) const;
  const c10::FunctionSchema& schema(const std::string& method) const;
  virtual Placement placement() { return state_.placement(); }
  Timeline predicted_timeline() const { return state_.observations().timeline(state_.residency()); }
  Stats stats() const;
  Stats counted() const; ///< the same without asking the driver
  Report report();
  std::optional<Timeline> recorded_timeline();
  virtual void set_vram_budget(std::uint64_t bytes) = 0;
  virtual void release() = 0;
  c10::Device device() const { return model_.device; }

  /// For tests: from the n-th allocation of the next call on, as if the first lane could have no more.
  void refuse_from(std::uint64_t n) { lanes().refuse_from(0, n); }

 protected:
  using Readiness = PlanState::Readiness;

  Session(const torch::jit::Module& module, const Options& options, const std::optional<MachineProfile>& machine);

  /// Makes the call, with what has to be planned and placed for it.
  virtual c10::IValue call(const Request& request) = 0;

  /// Adds what is counted of what this module streams.
  virtual void report_streamed(Stats& stats) const = 0;

  /// Adds how the run compares with what was predicted, and what would help. In a pool it depends on the others.
  virtual void judge(Report& /*report*/, const Plan& /*plan*/, const Observations& /*observed*/) const {}

  /// What is on the device now may be more than ever before.
  virtual void record_peak() = 0;

  void require_no_call_around(const char* wanted) const;

  /// Makes a call, and records what it has shown. `trace` is given for calls that are measured.
  Made make_call(int lane, const Request& request, Lanes::Overflow overflow, std::vector<LeasedStep>* trace);

  /// Makes an example call by `make`. What it writes is put back: an example is no call.
  void make_example(const ExampleCall& call, const std::function<void(const Request& request)>& make);

  /// From now on calls lease what `residency` leaves out, and reports begin anew.
  void record_placed(const Residency& residency);

  /// Has plans know what the last call has shown that was timed, and has ended on the device. False when there was
  /// none.
  bool record_laps();

  bool has_lost_places() const {
    return !engine().placed() || !transport_->started() || transport_->streamer()->lost();
  }
  Engine& engine() const { return *adopted_->engine; }
  LaneGate& gate() const { return transport_->gate(); }
  Lanes& lanes() const { return transport_->lanes(); }

  Promise host_promise_{kHost};
  Model model_;
  const bool may_overflow_; // a measuring call may put activations that find no room into page-locked host memory
  std::shared_ptr<Transport> transport_; // null where nothing was adopted
  std::unique_ptr<Adopted> adopted_;     // the same
  Sequences sequences_;
  PlanState state_;

 private:
  /// A call that was timed.
  struct TimedCall {
    std::string method;
    std::size_t shape;
    Residency residency; // that was placed
    std::unique_ptr<LaneClock> clock;
    std::optional<std::vector<MarkedBatch>> copies; // that were handed out since the call before it, if that is known
  };

  bool knows_laps() const; ///< that are not recorded yet
  Timeline draw(const TimedCall& call) const;

  mutable std::mutex timed_mutex_;
  std::optional<TimedCall> timed_;   // of which nobody knows yet
  std::optional<Timeline> timeline_; // of the last of which somebody does
  mutable std::mutex placed_mutex_;
  std::pair<Stats, std::chrono::steady_clock::time_point> placed_{
      {}, std::chrono::steady_clock::now()}; // what was counted when weights were last placed
};

} // namespace offload
