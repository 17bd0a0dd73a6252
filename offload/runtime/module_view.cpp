// What can be asked of a module; see module_impl.h.

#include <offload/measure.h>
#include <offload/runtime/module_impl.h>

namespace offload {

Placement Module::Impl::placement() const {
  const std::shared_ptr<const Placement> known = [&] {
    const std::lock_guard lock(mutex_);
    if (!placement_) {
      placement_ = std::make_shared<const Placement>(describe());
    }
    return placement_;
  }();
  return *known;
}

/// The caller holds the mutex.
Placement Module::Impl::describe() const {
  Placement placement;
  placement.device = device_.str();
  placement.machine = machine_.name;
  placement.rewritten = program_.rewritten;
  placement.unseen = program_.unseen;
  placement.writes_state = program_.writes_state;
  std::vector<bool> rows_only(count(), true); // read by nothing else, where it can be read in place
  for (const auto& [name, lowered] : program_.methods) {
    for (const PlanStep& step : pass_of(static_steps(name)).steps) {
      for (const WeightId weight : step.weights) {
        rows_only[weight] = false;
      }
    }
  }
  Budget& budget = placement.budget;
  const auto& weights = program_.weights.weights;
  for (WeightId id = 0; id < weights.size(); ++id) {
    if (bytes(id) == 0) {
      placement.resident_because.push_back({weights[id].name, weights[id].bytes(), program_.stays_because[id]});
      continue;
    }
    const bool resident = plan_.residency.resident[id];
    budget.resident += resident ? bytes(id) : 0;
    placement.weights.push_back({weights[id].name,
                                 weights[id].aliases,
                                 weights[id].bytes(),
                                 program_.uses[id],
                                 {{resident        ? Mode::resident
                                   : rows_only[id] ? Mode::in_place
                                                   : Mode::streamed,
                                   0, weights[id].bytes()}}});
  }
  for (const OtherTensor& other : program_.weights.others) {
    placement.resident_because.push_back(
        {other.name, other.bytes(), "handed to operators as it is: no range of bytes"});
  }
  budget.vram = vram_;
  const DeviceBudget divided = device_budget();
  budget.minimum = divided.minimum();
  budget.fixed = fixed_;
  budget.ring = plan_.residency.ring_bytes;
  budget.reserve = divided.reserve();
  budget.reserve_measured = !measured_.empty();
  budget.outside = outside_;
  budget.host = host_.total();
  budget.pinned = host_.pinned();
  for (WeightId id = 0; id < weights.size(); ++id) {
    budget.file += kind(id) == Source::Kind::file ? bytes(id) : 0;
  }
  placement.predicted = {plan_.predicted.time_us, planned_bytes(plan_.residency), plan_.predicted.streamed_bytes,
                         plan_.predicted.period};
  return placement;
}

Stats Module::Impl::stats() const {
  Stats stats;
  const std::uint64_t used = engine_->bytes_used();
  stats.bytes_streamed = engine_->bytes_streamed();
  stats.bytes_ahead = stats.bytes_streamed - std::min(stats.bytes_streamed, used);
  stats.copies = engine_->copies();
  stats.bytes_in_place = engine_->lender().bytes_in_place();
  stats.bytes_in_cache = engine_->lender().bytes_in_cache();
  stats.stall_us = engine_->stall_us();
  stats.outside_bytes = outside_bytes(device_);
  const std::lock_guard lock(mutex_);
  stats.calls = calls_;
  stats.calls_repeated = repeated_;
  stats.peak_device_bytes = peak_;
  stats.bytes_resident = fixed_;
  for (WeightId id = 0; id < count(); ++id) {
    stats.bytes_resident += readiness_ != Readiness::unknown && plan_.residency.resident[id] ? bytes(id) : 0;
  }
  stats.misses = engine_->misses();
  return stats;
}

/// Waits for calls only where they may be writing it. An operator of such a call, which is the only one then, finds
/// what has been written so far.
c10::IValue Module::Impl::attr(const std::string& name) const {
  std::optional<ExclusiveVisit> alone;
  if (program_.writes_state) {
    if (!executor_->is_within_call()) {
      alone.emplace(*gate_);
    }
    engine_->lanes().synchronize();
  }
  return placed_->attr(name);
}

} // namespace offload
