#include <offload/runtime/plan_state.h>

#include <optional>

#include <offload/bytes.h>
#include <offload/error.h>

namespace offload {

namespace {

/// What readers are told, as it was at one moment.
struct PlanSnapshot {
  DeviceBudget budget;
  Plan plan;
  Evidence evidence = Evidence::none;
  std::vector<std::string> unsized;
  std::uint64_t outside = 0; ///< bytes of the device in no budget, when the plan was made
};

/// What weights, ring and calls take on the device.
std::uint64_t planned_bytes(const Model& model, const Residency& residency, const DeviceBudget& budget) {
  return model.fixed + align_up(bytes_of(residency), granularity(model)) + budget.reserve();
}

Placement describe(const Model& model, const PlanSnapshot& snapshot) {
  Placement placement;
  placement.device = model.elsewhere ? "cuda:0" : model.device.str();
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
  const auto& [divided, plan, evidence, unsized, outside] = snapshot;
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
  budget.reserve_by = evidence;
  placement.unsized = unsized;
  budget.outside = outside;
  budget.host = model.host.total();
  budget.pinned = model.host.pinned();
  placement.predicted = {plan.predicted.time_us,
                         planned_bytes(model, plan.residency, divided),
                         plan.predicted.streamed_bytes,
                         plan.predicted.period,
                         {plan.callers.count, plan.callers.lanes, plan.round.time_us, plan.round.streamed_bytes}};
  return placement;
}

} // namespace

void PlanState::give(const GivenBudget& given) {
  const std::lock_guard lock(mutex_);
  given_ = given;
  counts_.peak = 0;
  std::erase_if(refused_, [&](const auto& refused) { return refused.second <= given.vram; });
  change();
}

/// As in "vram_budget 1 MiB (1048576 bytes)", and, where it was not given, where it comes from.
std::string PlanState::describe_budget(std::uint64_t vram) const {
  const std::uint64_t all = vram + given_.others;
  return "vram_budget " + format_bytes(all) + " (" + std::to_string(all) + " bytes" +
         (given_.others > 0 ? " of a pool, of which other modules take " + format_bytes(given_.others) : "") +
         (given_.free && vram == given_.vram ? "; none was given, and " + format_bytes(*given_.free) + " are free"
                                             : "") +
         ")";
}

void PlanState::require_minimum(std::uint64_t vram) const {
  const std::lock_guard lock(mutex_);
  const DeviceBudget budget = observed_.divide(vram);
  const std::uint64_t least = budget.minimum();
  const std::uint64_t for_calls = budget.least_reserve();
  const std::uint64_t assumed = observed_.activations.empty() ? for_calls : 0;
  if (vram + assumed < least) {
    const bool is_known = observed_.evidence() != Evidence::none && for_calls > 0;
    throw BudgetError((is_known ? "activations and workspaces take " + format_bytes(for_calls) + ": " : "") +
                          describe_budget(vram) + " is too small: the smallest that works is " + std::to_string(least) +
                          " bytes",
                      least);
  }
}

std::uint64_t PlanState::promised_bytes(const Residency& residency, int lanes) const {
  const std::lock_guard lock(mutex_);
  if (model_.elsewhere) {
    return 0;
  }
  if (model_.device.is_cuda() && !given_.free) {
    return given_.vram;
  }
  return std::min(given_.vram, model_.device.is_cuda()
                                   ? planned_bytes(model_, residency, observed_.divide(given_.vram, lanes))
                                   : bytes_taken_on_host(residency, *model_.weights));
}

void PlanState::record_memory(std::size_t shape, const CallMemory& memory, bool ended, std::uint64_t state,
                              std::uint64_t room) {
  const std::lock_guard lock(mutex_);
  const std::uint64_t before = observed_.activations.largest() + observed_.state();
  observed_.record_state(2 * state); // what a call writes anew is there beside what it replaces
  counts_.repeated += memory.overflowed ? 1 : 0;
  if (ended) {
    observed_.activations.record(shape, memory.bytes);
  } else if (refused_.count(shape) == 0) { // else it is known to fit in no way, and no plan is made for it
    observed_.activations.record_at_least(shape, std::min(memory.bytes, room)); // no plan leaves it more
  }
  if (observed_.activations.largest() + observed_.state() != before) {
    change();
  }
  const bool much_less = observed_.activations.largest() < planned_call_ / 4 * 3;
  if (readiness_ == Readiness::placed && much_less && plan_.residency.ring_bytes > 0) {
    readiness_ = Readiness::outdated; // what was kept for larger calls becomes room for weights
  }
}

void PlanState::refuse(std::size_t shape, const CallMemory& memory, bool ended, Refusal refusal) {
  const std::lock_guard lock(mutex_);
  const std::uint64_t least = observed_.divide(given_.vram).minimum();
  observed_.activations.remove(shape);
  change();
  if (memory.by_device) {
    throw Error("the device has less than the " + format_bytes(memory.bytes) +
                " that activations and workspaces of this call take, and a vram_budget of " +
                format_bytes(given_.vram) + " has room for: free device memory, or lower vram_budget");
  }
  if (ended || refusal == Refusal::until_more) {
    refused_[shape] = std::max(least, given_.vram + 1);
  }
  const std::uint64_t in_all = least + given_.others;
  throw BudgetError("activations and workspaces of this call take " + std::string(ended ? "" : "more than ") +
                        format_bytes(memory.bytes) + ": " + describe_budget(given_.vram) +
                        " is too small: the smallest that works is " + (ended ? "" : "over ") + std::to_string(in_all) +
                        " bytes",
                    in_all);
}

void PlanState::refuse_again(std::size_t shape) const {
  const std::lock_guard lock(mutex_);
  const auto refused = refused_.find(shape);
  if (refused != refused_.end()) {
    throw BudgetError("activations and workspaces of this call are known not to fit " + describe_budget(given_.vram) +
                          ": the smallest that works is " + std::to_string(refused->second + given_.others) + " bytes",
                      refused->second + given_.others);
  }
}

void PlanState::restore(Observations before, std::size_t shape) {
  const std::lock_guard lock(mutex_);
  before.record_state(observed_.state());
  observed_ = std::move(before); // allocates nothing
  observed_.activations.remove(shape);
  readiness_ = observed_.measured().empty() ? Readiness::unknown : Readiness::measured;
  change();
}

/// Simulated without the mutex. Weights that change places are brought again, which has to pay within some calls.
void PlanState::predict_again(Then then) {
  constexpr double kPays = 0.97; // of the time
  constexpr double kCalls = 100;
  std::unique_lock lock(mutex_);
  if (readiness_ != Readiness::placed) {
    return; // a plan is to be made anyway
  }
  const Observations observed = observed_;
  const std::uint64_t vram = given_.vram;
  const std::uint64_t changes = changes_;
  Plan now = plan_;
  lock.unlock();
  std::optional<Plan> best;
  try {
    now = observed.predict(std::move(now));
    if (then == Then::replan && observed.has_enough_laps()) {
      best = observed.plan(vram);
    }
  } catch (const Error&) { // what is placed is not what is observed any more
    return;
  }
  lock.lock();
  if (changes != changes_ || readiness_ != Readiness::placed) {
    return; // another plan has been made
  }
  if (best && best->callers.count == now.callers.count && best->round.time_us < kPays * now.round.time_us) {
    const double moves_us = static_cast<double>(bytes_of(best->residency)) / model_.machine.link_bytes_per_us;
    readiness_ = kCalls * (now.round.time_us - best->round.time_us) > moves_us ? Readiness::outdated : readiness_;
  }
  plan_ = std::move(now);
  change();
}

/// Described without the mutex: a reader stops no call.
Placement PlanState::placement() const {
  std::unique_lock lock(mutex_);
  std::shared_ptr<const Placement> known = placement_;
  if (!known) {
    const PlanSnapshot snapshot{observed_.divide(given_.vram, plan_.callers.lanes), plan_, observed_.evidence(),
                                observed_.unsized(), outside_};
    const std::uint64_t changes = changes_;
    lock.unlock();
    known = std::make_shared<const Placement>(describe(model_, snapshot));
    lock.lock();
    placement_ = changes == changes_ ? known : placement_;
  }
  lock.unlock();
  return *known;
}

void PlanState::report_streamed(Stats& stats) const {
  const std::lock_guard lock(mutex_);
  stats.misses = counts_.streamed.misses;
  stats.bytes_streamed = counts_.streamed.bytes_used;
  stats.passes = counts_.streamed.passes.passes;
  stats.calls_in_passes = counts_.streamed.passes.calls;
  stats.wait_door_us = counts_.streamed.door_us;
  stats.wait_calls_us = counts_.streamed.calls_us;
}

void PlanState::report(Stats& stats) const {
  const std::lock_guard lock(mutex_);
  stats.calls = counts_.calls;
  stats.calls_repeated = counts_.repeated;
  stats.peak_device_bytes = counts_.peak;
  stats.call_us = counts_.call_us;
  stats.wait_turn_us = counts_.wait_turn_us;
}

} // namespace offload
