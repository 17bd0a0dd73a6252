#include <vector>

#include <offload/runtime/plan_state.h>

namespace offload {

Placement describe(const Model& model, const PlanSnapshot& snapshot) {
  Placement placement;
  placement.device = model.device.str();
  placement.machine = model.machine.name;
  placement.rewritten = model.program.rewritten;
  placement.unseen = model.program.unseen;
  placement.writes_state = model.program.writes_state;
  std::vector<bool> rows_only(model.count(), true); // read by nothing else, where it can be read in place
  for (const auto& [name, lowered] : model.program.methods) {
    for (const PlanStep& step : model.pass_of(model.static_steps(name)).steps) {
      for (const WeightId weight : step.weights) {
        rows_only[weight] = false;
      }
    }
  }
  const auto& [divided, plan, is_measured, outside] = snapshot;
  Budget& budget = placement.budget;
  const auto& weights = model.program.weights.weights;
  for (WeightId id = 0; id < weights.size(); ++id) {
    const WeightEntry& entry = model.weight(id);
    if (entry.bytes == 0) {
      placement.resident_because.push_back({weights[id].name, weights[id].bytes(), model.program.stays_because[id]});
      continue;
    }
    const Mode mode = plan.residency.stays(id) ? Mode::resident : rows_only[id] ? Mode::in_place : Mode::streamed;
    budget.resident += plan.residency.bytes[id];
    budget.file += entry.source.kind == Source::Kind::file ? entry.bytes : 0;
    placement.weights.push_back({weights[id].name,
                                 weights[id].aliases,
                                 weights[id].bytes(),
                                 model.program.uses[id],
                                 {{mode, 0, weights[id].bytes()}}});
  }
  for (const OtherTensor& other : model.program.weights.others) {
    placement.resident_because.push_back(
        {other.name, other.bytes(), "handed to operators as it is: no range of bytes"});
  }
  budget.vram = divided.vram;
  budget.minimum = divided.minimum();
  budget.fixed = model.fixed;
  budget.ring = plan.residency.ring_bytes;
  budget.reserve = divided.reserve();
  budget.reserve_measured = is_measured;
  budget.outside = outside;
  budget.host = model.host.total();
  budget.pinned = model.host.pinned();
  placement.predicted = {plan.predicted.time_us, planned_bytes(model, plan.residency, divided),
                         plan.predicted.streamed_bytes, plan.predicted.period};
  return placement;
}

} // namespace offload
