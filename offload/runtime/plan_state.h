#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include <offload/device/lane_memory.h>
#include <offload/module.h>
#include <offload/placement.h>
#include <offload/runtime/observations.h>

namespace offload {

struct GivenBudget {
  std::uint64_t vram = 0;
  std::optional<std::uint64_t> free; ///< device memory, when the budget was chosen by it; none where it was given
};

/// What readers are told, as it was at one moment.
struct PlanSnapshot {
  DeviceBudget budget;
  Plan plan;
  bool is_measured = false;  ///< what calls take
  std::uint64_t outside = 0; ///< bytes of the device in no budget, when the plan was made
};

/// The placement of `model` by a plan.
Placement describe(const Model& model, const PlanSnapshot& snapshot);

/// What weights, ring and calls take on the device.
std::uint64_t planned_bytes(const Model& model, const Residency& residency, const DeviceBudget& budget);

/// The budget of a module, what its calls have shown, and the plan that follows from both. Calls record here what they
/// take, and whoever has all lanes changes budget and plan. Any thread may ask; nobody waits for long.
class PlanState {
 public:
  /// What is known for calls.
  enum class Readiness {
    unknown,  ///< the next call is a measuring call
    measured, ///< and planned anew with the next one
    placed,
  };

  /// `model` outlives this.
  PlanState(const Model& model, std::string planned_method)
      : model_(model), observed_(model, std::move(planned_method)) {
    plan_.residency.bytes.resize(model.count()); // nothing stays yet
  }

  GivenBudget given() const;
  void give(const GivenBudget& given);

  /// How the budget is divided by what is known now.
  DeviceBudget budget() const;

  /// Throws BudgetError when the calls that were measured do not fit into `vram`. What no call has shown yet is no
  /// reason.
  void require_minimum(std::uint64_t vram) const;

  /// What others must not count as free. On a GPU calls may take all of a budget that was given; of what is free by
  /// default they count with what it takes as planned. On the host, what stays has its memory, and what is resident and
  /// lies in memory is used there.
  std::uint64_t promised_bytes(const Residency& residency) const;

  Readiness readiness() const;
  void set_readiness(Readiness readiness);

  /// The best use of the budget by what is known now. It takes milliseconds; nobody waits for it.
  Plan make_plan() const;
  void set_plan(Plan plan, Readiness readiness);

  /// Bytes of the device in no budget, for readers.
  void set_outside(std::uint64_t bytes);

  /// What is placed, though it is not as planned: for a call that is measured.
  void set_residency(Residency residency);
  Residency residency() const;

  /// What is placed goes on, though another plan was wanted.
  void keep_plan();

  /// What a call takes by its shape, and whether one like it has been made.
  std::uint64_t expected_memory(std::size_t shape) const;
  bool knows(std::size_t shape) const;

  void record_call();
  void record_peak(std::uint64_t bytes_on_device);
  void record_steps(const std::string& method, std::vector<LeasedStep> steps);

  /// Of a call that ended, or was stopped when it had taken `memory`. `state`: bytes that calls have put into the
  /// module; `room`: what calls may take in all.
  void record_memory(std::size_t shape, const CallMemory& memory, bool ended, std::uint64_t state, std::uint64_t room);

  /// An example of what comes: its memory is always kept free.
  void pin(std::size_t shape);

  /// Refuses a call that does not fit, whatever gives way to it. It leaves nothing behind that calls to come are
  /// planned with.
  [[noreturn]] void refuse(std::size_t shape, const CallMemory& memory, bool ended);

  /// Refuses one that is known to fit in no way.
  void refuse_again(std::size_t shape) const;

  /// All that calls have shown; and as it was, without the call of `shape` that failed.
  Observations observations() const;
  void restore(Observations before, std::size_t shape);

  Placement placement() const;

  /// Adds what is counted here.
  void report(Stats& stats) const;

 private:
  void change();
  std::string describe_budget(std::uint64_t vram) const;

  struct Counts {
    std::uint64_t calls = 0;
    std::uint64_t repeated = 0;
    std::uint64_t peak = 0; // bytes on the device, since the budget was set
  };

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
