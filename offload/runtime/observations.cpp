#include <offload/runtime/observations.h>

#include <bit>
#include <set>
#include <utility>

#include <offload/bytes.h>
#include <offload/device/memory.h>

namespace offload {

namespace {

constexpr int kFew = 3;                    // calls
constexpr int kMostTimed = 1024;           // the last call that is
constexpr std::uint64_t kAssumed = 64_MiB; // for activations and workspaces of a lane, until a call has been seen

/// All that its steps read, at once.
Choice all_of(const Pass& pass) {
  std::set<WeightId> all;
  for (const PlanStep& step : pass.steps) {
    all.insert(step.weights.begin(), step.weights.end());
  }
  return {Step(all.begin(), all.end()), all.size()};
}

} // namespace

void Observations::record_steps(const std::string& method, std::size_t shape, std::vector<LeasedStep> steps) {
  measured_[method] = std::move(steps);
  timed_[method] = {shape};
  evidence_ = Evidence::calls;
  planned_method_ = measured_.count(planned_method_) > 0 ? planned_method_ : method;
  least_ring_ = minimum_capacity(pass());
}

bool Observations::has_enough_laps() const {
  const auto timed = timed_.find(planned_method_);
  return timed != timed_.end() && timed->second.recorded >= kFew;
}

/// The first few, which are slow for what is done once, and then fewer and fewer.
bool Observations::times_next(const std::string& method, std::size_t shape) const {
  const auto timed = timed_.find(method);
  if (method != planned_method_ || timed == timed_.end() || timed->second.shape != shape) {
    return false;
  }
  const int next = timed->second.calls + 1;
  return next <= kMostTimed && (next <= kFew || std::has_single_bit(static_cast<unsigned>(next)));
}

bool Observations::begin_alone(const std::string& method, std::size_t shape) {
  const bool is_timed = times_next(method, shape);
  const auto timed = timed_.find(method);
  if (timed != timed_.end() && timed->second.shape == shape && timed->second.calls < kMostTimed) {
    ++timed->second.calls;
  }
  return is_timed;
}

bool Observations::record_laps(const std::string& method, std::size_t shape, const Residency& residency,
                               const Laps& laps) {
  const auto timed = timed_.find(method);
  if (timed == timed_.end() || timed->second.shape != shape ||
      !offload::record_laps(measured_.at(method), model_->weights, residency, laps, machine_)) {
    return false;
  }
  ++timed->second.recorded;
  return true;
}

DeviceBudget Observations::divide(std::uint64_t vram, int lanes) const {
  DeviceBudget budget;
  budget.vram = vram;
  budget.fixed = model_->fixed;
  budget.least_ring = least_ring_;
  budget.lanes = lanes;
  budget.unit = granularity(*model_);
  if (model_->is_for_gpu()) {
    budget.call = activations.empty() ? kAssumed : times_rows_ * activations.largest();
    budget.state = state_;
    budget.calls_differ = activations.differ();
  }
  return budget;
}

/// What is planned for: the steps of one method as they were measured, or else as the graph has them. What other
/// methods and branches that were not taken read must find room, too, and whatever else the run may pick.
Pass Observations::pass() const {
  const auto measured = measured_.find(planned_method_);
  Pass pass = model_->pass_of(measured != measured_.end() ? measured->second : model_->static_steps(planned_method_));
  const auto add = [&](const Pass& seen) {
    for (const PlanStep& step : seen.steps) {
      pass.choices.push_back({step.weights, step.weights.size()});
    }
  };
  Pass held; // the steps of what calls hold until they end: on several lanes, of any methods at the same time
  for (const auto& [name, lowered] : model_->program.methods) {
    const Pass steps = model_->pass_of(model_->static_steps(name));
    add(steps);
    pass.choices.insert(pass.choices.end(), lowered.choices.begin(), lowered.choices.end());
    if (lowered.holds_weights) {
      pass.choices.push_back(all_of(steps));
      held.steps.insert(held.steps.end(), steps.steps.begin(), steps.steps.end());
    }
  }
  for (const auto& [name, steps] : measured_) {
    add(model_->pass_of(steps));
  }
  if (model_->lanes > 1 && !held.steps.empty()) {
    pass.choices.push_back(all_of(held));
  }
  std::sort(pass.choices.begin(), pass.choices.end());
  pass.choices.erase(std::unique(pass.choices.begin(), pass.choices.end()), pass.choices.end());
  return pass;
}

std::uint64_t Observations::held_bytes() const {
  Pass held;
  for (const auto& [name, lowered] : model_->program.methods) {
    if (lowered.holds_weights) {
      const Pass steps = model_->pass_of(model_->static_steps(name));
      held.steps.insert(held.steps.end(), steps.steps.begin(), steps.steps.end());
    }
  }
  std::uint64_t bytes = 0;
  for (const WeightId weight : all_of(held).weights) {
    bytes += model_->weight(weight).bytes;
  }
  return bytes;
}

Plan Observations::plan(const Pass& pass, std::uint64_t vram, Callers callers) const {
  const std::uint64_t capacity = divide(vram, callers.lanes).capacity();
  Plan best = offload::plan(pass, capacity, machine_, callers, model_->rule);
  if (best.residency.ring_bytes == 0) { // room is left: what is read in place is read faster on the device
    std::uint64_t taken = bytes_of(best.residency);
    for (WeightId id = 0; id < model_->count(); ++id) {
      if (!best.residency.stays(id) && !model_->program.uses[id].empty() &&
          taken + model_->weight(id).bytes <= capacity) {
        best.residency.bytes[id] = model_->weight(id).bytes;
        taken += model_->weight(id).bytes;
      }
    }
  }
  return best;
}

Plan Observations::plan(std::uint64_t vram) const {
  constexpr double kAwayUs = 1500; // who answers for a request and takes the next one
  constexpr double kPays = 0.97;   // of the time of a round; and where nothing streams, no weight gives way to a lane
  const Pass pass = this->pass();
  const int callers = this->callers();
  Plan best = plan(pass, vram, {callers, 1, kAwayUs});
  for (int lanes = 1; lanes < callers && divide(vram, std::min(2 * lanes, callers)).has_room_for_lanes();) {
    lanes = std::min(2 * lanes, callers);
    Plan more = plan(pass, vram, {callers, lanes, kAwayUs});
    const bool streams_for_it = best.round.streamed_bytes == 0 && more.round.streamed_bytes > 0;
    if (!streams_for_it && more.round.time_us < kPays * best.round.time_us) {
      best = std::move(more);
    }
  }
  return best;
}

Plan Observations::predict(Plan plan) const {
  const Pass pass = this->pass();
  plan.predicted = simulate(pass, plan.residency, machine_);
  plan.round = plan.callers.count == 1 ? plan.predicted : simulate(pass, plan.residency, machine_, plan.callers);
  return plan;
}

std::uint64_t Observations::resident_vram() const {
  const std::uint64_t needed = resident_capacity(pass());
  const DeviceBudget least = divide(0, callers());
  std::uint64_t vram = least.fixed + needed; // and what is kept from weights, which depends on the budget
  for (std::uint64_t capacity = 0; (capacity = divide(vram, callers()).capacity()) < needed;) {
    vram += align_up(needed - capacity, least.unit);
  }
  return std::max(vram, least.minimum());
}

SweepPoint Observations::point(std::uint64_t vram) const {
  const Plan best = plan(vram);
  return {vram, best.round.time_us, best.round.streamed_bytes, bound_of(best.round, binding(best.residency))};
}

Observations Observations::with_faster_copies(Bound copies) const {
  Observations other = *this;
  (copies == Bound::disk ? other.machine_.file_bytes_per_us : other.machine_.link_bytes_per_us) *= 2;
  return other;
}

std::optional<Observations> Observations::with_twice_the_rows() const {
  Observations other = *this;
  other.times_rows_ *= 2;
  bool multiplies = false;
  for (auto& [method, steps] : other.measured_) {
    steps = offload::with_twice_the_rows(*model_->weights, std::move(steps), machine_);
    multiplies =
        multiplies || std::any_of(steps.begin(), steps.end(), [](const LeasedStep& step) { return step.flops > 0; });
  }
  return multiplies ? std::optional(std::move(other)) : std::nullopt;
}

} // namespace offload
