#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <offload/placement.h>
#include <offload/plan/device_budget.h>
#include <offload/plan/planner.h>
#include <offload/plan/sweep.h>
#include <offload/runtime/activations.h>
#include <offload/runtime/demand.h>
#include <offload/runtime/model.h>

namespace offload {

/// What calls have shown of a model, and what follows for plans. Not synchronised.
class Observations {
 public:
  /// `model` outlives this.
  Observations(const Model& model, std::string planned_method)
      : demand(model.callers),
        model_(&model),
        machine_(model.machine),
        planned_method_(std::move(planned_method)),
        least_ring_(minimum_capacity(pass())) {}

  /// A call of `method`, of this shape, leased `steps`. Plans are made for the first method that was seen, unless
  /// another was named.
  void record_steps(const std::string& method, std::size_t shape, std::vector<LeasedStep> steps);

  /// The same as `sizes` of a call tell.
  void record_sizes(const std::string& method, std::size_t shape, std::vector<LeasedStep> steps) {
    record_steps(method, shape, std::move(steps));
    evidence_ = Evidence::sizes;
  }

  /// A call begins that nothing is beside. True when it is one that plans are made for, and to be timed.
  bool begin_alone(const std::string& method, std::size_t shape);

  /// Whether that is true of the next.
  bool times_next(const std::string& method, std::size_t shape) const;

  /// Whether so many have been that their costs are no accident.
  bool has_enough_laps() const;

  /// Such a call took this where `residency` was placed. False when it was another after all.
  bool record_laps(const std::string& method, std::size_t shape, const Residency& residency, const Laps& laps);

  /// An example call could not be told from its sizes.
  void record_unsized(const std::string& why) { unsized_.push_back(why); }
  const std::vector<std::string>& unsized() const { return unsized_; }

  Evidence evidence() const { return evidence_; }

  /// Calls have put so many bytes into the module, beside what they replace.
  void record_state(std::uint64_t bytes) { state_ = std::max(state_, bytes); }
  std::uint64_t state() const { return state_; }

  /// By method, the steps that were seen last.
  const std::map<std::string, std::vector<LeasedStep>>& measured() const { return measured_; }

  /// What is planned for, and what calls may need too.
  Pass pass() const;

  /// Of weights that calls hold until they end, of all methods at the same time.
  std::uint64_t held_bytes() const;

  Activations activations;
  Demand demand;

  /// How a budget of `vram` bytes is divided by what is known, for calls on `lanes` at the same time. The ring holds
  /// one node's weights for each of them: with one lane that is exact, with more they wait for each other, for their
  /// activations as well.
  DeviceBudget divide(std::uint64_t vram, int lanes = 1) const;

  /// The best use of a budget, by those who call, on as many lanes as pay.
  Plan plan(std::uint64_t vram) const;

  /// The same plan by what is known now.
  Plan predict(Plan plan) const;

  /// The smallest budget in which all that calls may read is resident, with room for all who call. What is read in
  /// place may stay where it is.
  std::uint64_t resident_vram() const;

  /// What such a plan predicts.
  SweepPoint point(std::uint64_t vram) const;

  Binding binding(const Residency& residency) const { return binding_of(pass(), residency, machine_); }

  /// The same for other plans: with a link, or with `disk` a disk, that is twice as fast; with twice the rows in a
  /// call, each of which multiplies as much, and takes as much memory.
  Observations with_faster_copies(Bound copies) const;
  /// None while no call has shown that it multiplies.
  std::optional<Observations> with_twice_the_rows() const;

  /// A call, where this is placed.
  Timeline timeline(const Residency& residency) const { return timeline_of(pass(), residency, model_->machine); }

 private:
  int callers() const { return std::min(demand.callers(), model_->lanes); } ///< that are planned for
  Plan plan(const Pass& pass, std::uint64_t vram, Callers callers) const;

  /// Calls like the one that showed the steps of a method.
  struct Timed {
    std::size_t shape = 0;
    int calls = 0;    // that nothing was beside
    int recorded = 0; // of these, whose laps are known
  };

  const Model* model_;
  MachineProfile machine_; // what copies cost
  std::string planned_method_;
  std::map<std::string, std::vector<LeasedStep>> measured_;
  std::map<std::string, Timed> timed_; // the same
  std::uint64_t least_ring_;           // by the pass that is planned for
  std::uint64_t state_ = 0;
  std::uint64_t times_rows_ = 1; // of those that calls had
  Evidence evidence_ = Evidence::none;
  std::vector<std::string> unsized_;
};

} // namespace offload
