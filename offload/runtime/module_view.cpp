// What can be asked of a module; see module_impl.h.

#include <offload/runtime/module_impl.h>
#include <offload/runtime/outside_bytes.h>

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
  placement.device = model_.device.str();
  placement.machine = model_.machine.name;
  placement.rewritten = model_.program.rewritten;
  placement.unseen = model_.program.unseen;
  placement.writes_state = model_.program.writes_state;
  std::vector<bool> rows_only(model_.count(), true); // read by nothing else, where it can be read in place
  for (const auto& [name, lowered] : model_.program.methods) {
    for (const PlanStep& step : model_.pass_of(model_.static_steps(name)).steps) {
      for (const WeightId weight : step.weights) {
        rows_only[weight] = false;
      }
    }
  }
  Budget& budget = placement.budget;
  const auto& weights = model_.program.weights.weights;
  for (WeightId id = 0; id < weights.size(); ++id) {
    if (model_.weight(id).bytes == 0) {
      placement.resident_because.push_back({weights[id].name, weights[id].bytes(), model_.program.stays_because[id]});
      continue;
    }
    const bool resident = planned_.plan.residency.stays(id);
    budget.resident += planned_.plan.residency.bytes[id];
    placement.weights.push_back({weights[id].name,
                                 weights[id].aliases,
                                 weights[id].bytes(),
                                 model_.program.uses[id],
                                 {{resident        ? Mode::resident
                                   : rows_only[id] ? Mode::in_place
                                                   : Mode::streamed,
                                   0, weights[id].bytes()}}});
  }
  for (const OtherTensor& other : model_.program.weights.others) {
    placement.resident_because.push_back(
        {other.name, other.bytes(), "handed to operators as it is: no range of bytes"});
  }
  budget.vram = given_.vram;
  const DeviceBudget divided = device_budget();
  budget.minimum = divided.minimum();
  budget.fixed = model_.fixed;
  budget.ring = planned_.plan.residency.ring_bytes;
  budget.reserve = divided.reserve();
  budget.reserve_measured = !observed_.measured().empty();
  budget.outside = planned_.outside;
  budget.host = model_.host.total();
  budget.pinned = model_.host.pinned();
  for (WeightId id = 0; id < weights.size(); ++id) {
    budget.file += model_.weight(id).source.kind == Source::Kind::file ? model_.weight(id).bytes : 0;
  }
  placement.predicted = {planned_.plan.predicted.time_us, planned_bytes(planned_.plan.residency),
                         planned_.plan.predicted.streamed_bytes, planned_.plan.predicted.period};
  return placement;
}

Stats Module::Impl::stats() const {
  Stats stats;
  const std::uint64_t used = engine().bytes_used();
  stats.bytes_streamed = engine().bytes_streamed();
  stats.bytes_ahead = stats.bytes_streamed - std::min(stats.bytes_streamed, used);
  stats.copies = engine().copies();
  stats.bytes_in_place = engine().lender().bytes_in_place();
  stats.bytes_in_cache = engine().lender().bytes_in_cache();
  stats.stall_us = engine().stall_us();
  stats.outside_bytes = outside_bytes(model_.device);
  const std::lock_guard lock(mutex_);
  stats.calls = counts_.calls;
  stats.calls_repeated = counts_.repeated;
  stats.peak_device_bytes = counts_.peak;
  stats.bytes_resident = model_.fixed;
  if (readiness_ != Readiness::unknown) {
    stats.bytes_resident += bytes_of(planned_.plan.residency) - planned_.plan.residency.ring_bytes;
  }
  stats.misses = engine().misses();
  return stats;
}

/// Waits for calls only where they may be writing it. An operator of such a call, which is the only one then, finds
/// what has been written so far.
c10::IValue Module::Impl::attr(const std::string& name) const {
  std::optional<ExclusiveLaneLock> alone;
  if (model_.program.writes_state) {
    if (!adopted_->executor->is_within_call()) {
      alone.emplace(*gate_);
    }
    engine().lanes().synchronize();
  }
  return adopted_->placed->attr(name);
}

} // namespace offload
