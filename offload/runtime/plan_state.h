#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include <offload/device/lane_memory.h>
#include <offload/module.h>
#include <offload/ring/streamer.h>
#include <offload/runtime/observations.h>

namespace offload {

struct GivenBudget {
  std::uint64_t vram = 0;
  std::optional<std::uint64_t> free; ///< device memory, when the budget was chosen by it; none where it was given
  std::uint64_t others = 0;          ///< of a pool's budget, what it has to leave to others beside `vram`
};

/// The budget of a module, what its calls have shown, and the plan that follows from both. Calls record here what they
/// take, and whoever has all lanes changes budget and plan. Any thread may ask; nobody waits for long.
class PlanState {
 public:
  /// What is known for calls.
  enum class Readiness {
    unknown,  ///< the next call is a measuring call
    measured, ///< and planned anew with the next one
    outdated, ///< placed, and another plan would be better: whoever begin_replan() tells makes it beside calls
    placed,
  };

  /// `model` outlives this.
  PlanState(const Model& model, std::string planned_method)
      : model_(model), observed_(model, std::move(planned_method)) {
    plan_.residency.bytes.resize(model.count()); // nothing stays yet
  }

  GivenBudget given() const {
    const std::lock_guard lock(mutex_);
    return given_;
  }
  void give(const GivenBudget& given);

  /// How the budget is divided by what is known now.
  DeviceBudget budget() const {
    const std::lock_guard lock(mutex_);
    return observed_.divide(given_.vram, plan_.callers.lanes);
  }

  /// Throws BudgetError when the calls that were measured do not fit into `vram`. What no call has shown yet is no
  /// reason.
  void require_minimum(std::uint64_t vram) const;

  /// What others must not count as free. On a GPU calls may take all of a budget that was given; of what is free by
  /// default they count with what it takes as planned. On the host, what stays has its memory, and what is resident and
  /// lies in memory is used there. A plan for another machine takes nothing here.
  std::uint64_t promised_bytes(const Residency& residency, int lanes) const;

  Readiness readiness() const {
    const std::lock_guard lock(mutex_);
    return readiness_;
  }
  bool is_placed() const { return readiness() >= Readiness::outdated; }

  /// True for one caller where what is placed is outdated: it is to make a plan, by what is known at `changes`, and has
  /// to say so where that came to nothing. None where nothing is to be done.
  std::optional<std::uint64_t> begin_replan() {
    const std::lock_guard lock(mutex_);
    if (readiness_ != Readiness::outdated) {
      return std::nullopt;
    }
    readiness_ = Readiness::placed;
    return changes_;
  }
  std::uint64_t changes() const {
    const std::lock_guard lock(mutex_);
    return changes_;
  }

  void set_readiness(Readiness readiness) {
    const std::lock_guard lock(mutex_);
    readiness_ = readiness;
  }

  /// The best use of the budget by what is known now. It takes milliseconds; nobody waits for it.
  Plan make_plan() const { return observations().plan(given().vram); }
  Plan plan() const {
    const std::lock_guard lock(mutex_);
    return plan_;
  }
  void set_plan(Plan plan, Readiness readiness) {
    const std::lock_guard lock(mutex_);
    plan_ = std::move(plan);
    planned_call_ = observed_.activations.largest();
    readiness_ = readiness;
    change();
  }

  /// Bytes of the device in no budget, for readers.
  void set_outside(std::uint64_t bytes) {
    const std::lock_guard lock(mutex_);
    outside_ = bytes;
    change();
  }

  /// What is placed, though it is not as planned: for a call that is measured.
  void set_residency(Residency residency) {
    const std::lock_guard lock(mutex_);
    plan_.residency = std::move(residency);
    change();
  }
  Residency residency() const {
    const std::lock_guard lock(mutex_);
    return plan_.residency;
  }

  /// What is placed goes on, though another plan was wanted.
  void keep_plan() {
    const std::lock_guard lock(mutex_);
    planned_call_ = observed_.activations.largest();
    readiness_ = Readiness::placed;
  }

  /// What a call takes by its shape, and whether one like it has been made.
  std::uint64_t expected_memory(std::size_t shape) const {
    const std::lock_guard lock(mutex_);
    return observed_.activations.expected(shape);
  }
  bool knows(std::size_t shape) const {
    const std::lock_guard lock(mutex_);
    return observed_.activations.knows(shape);
  }

  std::uint64_t largest_call() const {
    const std::lock_guard lock(mutex_);
    return observed_.activations.largest();
  }
  std::uint64_t held_bytes() const {
    const std::lock_guard lock(mutex_);
    return observed_.held_bytes();
  }
  /// Whether calls have shown what they lease: of any method, or of this one.
  bool has_steps() const {
    const std::lock_guard lock(mutex_);
    return !observed_.measured().empty();
  }
  bool has_steps(const std::string& method) const {
    const std::lock_guard lock(mutex_);
    return observed_.measured().count(method) > 0;
  }

  void record_call(const StreamerCounts& streamed, double took_us) {
    const std::lock_guard lock(mutex_);
    ++counts_.calls;
    counts_.call_us += took_us;
    counts_.streamed.add(streamed);
  }
  void record_turn(double waited_us) {
    const std::lock_guard lock(mutex_);
    counts_.wait_turn_us += waited_us;
  }

  /// A call begins, of `callers` that are in a call or wait for their turn.
  void record_callers(int callers) {
    const std::lock_guard lock(mutex_);
    if (observed_.demand.record(std::min(callers, model_.lanes)) && readiness_ == Readiness::placed &&
        plan_.residency.ring_bytes > 0) {
      readiness_ = Readiness::outdated; // planned anew for them
    }
  }
  void record_peak(std::uint64_t bytes_on_device) {
    const std::lock_guard lock(mutex_);
    counts_.peak = std::max(counts_.peak, bytes_on_device);
  }
  void record_steps(const std::string& method, std::size_t shape, std::vector<LeasedStep> steps) {
    const std::lock_guard lock(mutex_);
    observed_.record_steps(method, shape, std::move(steps));
    change();
  }

  /// See Observations.
  bool begin_alone(const std::string& method, std::size_t shape) {
    const std::lock_guard lock(mutex_);
    return readiness_ == Readiness::placed && observed_.begin_alone(method, shape);
  }
  bool times_next(const std::string& method, std::size_t shape) const {
    const std::lock_guard lock(mutex_);
    return observed_.times_next(method, shape);
  }
  bool record_laps(const std::string& method, std::size_t shape, const Residency& residency, const Laps& laps) {
    const std::lock_guard lock(mutex_);
    const bool is_one = observed_.record_laps(method, shape, residency, laps);
    changes_ += is_one ? 1 : 0; // what is predicted by what was known before is out of date
    return is_one;
  }

  /// What is placed is predicted anew. With `replan` it is outdated where calls that have been timed show that another
  /// plan would be better by enough.
  enum class Then { nothing, replan };
  void predict_again(Then then);

  /// Of an example call: what its sizes tell, or why they do not.
  void record_sizes(const std::string& method, std::size_t shape, std::vector<LeasedStep> steps) {
    const std::lock_guard lock(mutex_);
    observed_.record_sizes(method, shape, std::move(steps));
    change();
  }
  void record_unsized(const std::string& why) {
    const std::lock_guard lock(mutex_);
    observed_.record_unsized(why);
    change();
  }

  /// Of a call that ended, or was stopped when it had taken `memory`. `state`: bytes that calls have put into the
  /// module; `room`: what calls may take in all.
  void record_memory(std::size_t shape, const CallMemory& memory, bool ended, std::uint64_t state, std::uint64_t room);

  /// An example of what comes: its memory is always kept free.
  void pin(std::size_t shape) {
    const std::lock_guard lock(mutex_);
    observed_.activations.pin(shape);
  }

  /// Refuses a call that does not fit, whatever gives way to it. It leaves nothing behind that calls to come are
  /// planned with.
  enum class Refusal { if_known, until_more }; ///< calls like it are refused at once: where it ended, or in any case
  [[noreturn]] void refuse(std::size_t shape, const CallMemory& memory, bool ended,
                           Refusal refusal = Refusal::if_known);

  /// Refuses one that is known to fit in no way.
  void refuse_again(std::size_t shape) const;

  /// All that calls have shown; and as it was, without the call of `shape` that failed.
  Observations observations() const {
    const std::lock_guard lock(mutex_);
    return observed_;
  }
  void restore(Observations before, std::size_t shape);

  Placement placement() const;

  /// Adds what is counted here; and what calls that returned have streamed.
  void report(Stats& stats) const;
  void report_streamed(Stats& stats) const;

 private:
  struct Counts {
    std::uint64_t calls = 0;
    std::uint64_t repeated = 0;
    std::uint64_t peak = 0;  // bytes on the device, since the budget was set
    double call_us = 0;      // of calls that returned, once it was their turn
    double wait_turn_us = 0; // of calls
    StreamerCounts streamed; // of calls that returned
  };

  /// The caller holds the mutex.
  void change() {
    ++changes_;
    placement_.reset();
  }
  std::string describe_budget(std::uint64_t vram) const;

  const Model& model_;
  mutable std::mutex mutex_;
  GivenBudget given_;
  Observations observed_;
  Plan plan_;
  std::uint64_t planned_call_ = 0; // the largest that the plan was made for
  std::uint64_t outside_ = 0;
  Readiness readiness_ = Readiness::unknown;
  std::unordered_map<std::size_t, std::uint64_t> refused_; // by shape of call: the budget that it takes
  Counts counts_;
  std::uint64_t changes_ = 0;                          // of what a placement says
  mutable std::shared_ptr<const Placement> placement_; // null when something has changed since
};

} // namespace offload
