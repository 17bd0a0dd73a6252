// How a module is planned and placed; see module_impl.h.

#include <algorithm>
#include <set>
#include <tuple>
#include <utility>

#include <offload/bytes.h>
#include <offload/graph/expected_order.h>
#include <offload/graph/lower.h>
#include <offload/measure.h>
#include <offload/runtime/module_impl.h>
#include <offload/tensor/plain_modes.h>

namespace offload {

namespace {

constexpr std::uint64_t kAssumed = 64_MiB; // for activations and workspaces of a lane, until a call has been seen

} // namespace

/// As it is known by now. The ring holds one node's weights for each lane: with one lane that is exact, with more they
/// wait for each other, for their activations as well.
DeviceBudget Module::Impl::device_budget() const {
  DeviceBudget budget;
  budget.vram = vram_;
  budget.fixed = fixed_;
  budget.least_ring = minimum_capacity(planned_pass());
  budget.lanes = lanes_;
  budget.unit = granularity(device_);
  if (device_.is_cuda()) {
    budget.call = activations_.empty() ? kAssumed : activations_.largest();
    budget.state = state_;
    budget.calls_differ = activations_.differ();
  }
  return budget;
}

/// What calls may take beside what is placed; on a host whatever they need.
std::uint64_t Module::Impl::room() const {
  return device_.is_cuda() ? device_budget().room(engine_->placed_bytes()) : ~std::uint64_t{0};
}

namespace {

/// All that its steps read, at once.
Room all_of(const Pass& pass) {
  std::set<WeightId> all;
  for (const PlanStep& step : pass.steps) {
    all.insert(step.weights.begin(), step.weights.end());
  }
  return {Step(all.begin(), all.end()), all.size()};
}

} // namespace

/// What is planned for: the steps of one method as they were measured, or else as the graph has them. What other
/// methods and branches that were not taken read must find room, too, and whatever else the run may pick.
Pass Module::Impl::planned_pass() const {
  const auto measured = measured_.find(planned_method_);
  Pass pass = pass_of(measured != measured_.end() ? measured->second : static_steps(planned_method_));
  const auto add = [&](const std::vector<LeasedStep>& steps) {
    for (PlanStep& step : pass_of(steps).steps) {
      const std::size_t all = step.weights.size();
      pass.rooms.push_back({std::move(step.weights), all});
    }
  };
  Pass held; // the steps of what calls hold until they end: on several lanes, of any methods at the same time
  for (const auto& [name, lowered] : program_.methods) {
    add(static_steps(name));
    pass.rooms.insert(pass.rooms.end(), lowered.rooms.begin(), lowered.rooms.end());
    if (lowered.holds_weights) {
      const Pass steps = pass_of(static_steps(name));
      pass.rooms.push_back(all_of(steps));
      held.steps.insert(held.steps.end(), steps.steps.begin(), steps.steps.end());
    }
  }
  for (const auto& [name, steps] : measured_) {
    add(steps);
  }
  if (lanes_ > 1 && !held.steps.empty()) {
    pass.rooms.push_back(all_of(held));
  }
  std::sort(pass.rooms.begin(), pass.rooms.end());
  pass.rooms.erase(std::unique(pass.rooms.begin(), pass.rooms.end()), pass.rooms.end());
  return pass;
}

std::vector<LeasedStep> Module::Impl::static_steps(const std::string& name) const {
  std::vector<LeasedStep> steps;
  const auto lowered = program_.methods.find(name);
  if (lowered != program_.methods.end()) {
    for (const LoweredStep* step : expected_order(lowered->second.steps)) {
      steps.push_back({step->weights, 0, step->taken == Taken::rows});
    }
  }
  return steps;
}

/// With what is known by now.
Plan Module::Impl::best_plan() const {
  const std::uint64_t capacity = device_budget().capacity();
  Plan best = plan(planned_pass(), capacity, machine_);
  if (best.residency.ring_bytes == 0) { // room is left: what is read in place is read faster on the device
    std::uint64_t taken = bytes_of(best.residency, *weights_);
    for (WeightId id = 0; id < count(); ++id) {
      if (!best.residency.resident[id] && !program_.uses[id].empty() && taken + bytes(id) <= capacity) {
        best.residency.resident[id] = true;
        taken += bytes(id);
      }
    }
  }
  return best;
}

/// What weights, ring and calls take on the device.
std::uint64_t Module::Impl::planned_bytes(const Residency& residency) const {
  return fixed_ + align_up(bytes_of(residency, *weights_), granularity(device_)) + device_budget().reserve();
}

/// What others must not count as free. On a GPU calls may take all of a budget that was given; of what is free by
/// default they count with what it takes as planned. On the host, what stays has its memory, and what is resident and
/// lies in memory is used there.
std::uint64_t Module::Impl::promised_bytes(const Residency& residency) const {
  if (device_.is_cuda()) {
    return free_ ? std::min(vram_, planned_bytes(residency)) : vram_;
  }
  return std::min(vram_, bytes_taken_on_host(residency, *weights_));
}

/// Plans, and places accordingly if there is an engine. Callers hold all lanes, or are alone.
/// Where it throws, nothing is placed: the next call tries again. But where it throws since the file has changed, all
/// is as it was.
void Module::Impl::replan() {
  if (engine_) {
    engine_->check_file();
  }
  {
    const std::lock_guard lock(mutex_);
    readiness_ = Readiness::measured;
  }
  Plan best = best_plan();
  const std::uint64_t promised = promised_bytes(best.residency);
  device_promise_.raise_to(promised);
  if (engine_) {
    engine_->lanes().release();
    placed_->install(best.residency, PlacedModule::Leased::streamed);
    gate_->set_room(room());
    record_peak();
  }
  device_promise_.set(promised);
  const std::uint64_t outside = outside_bytes(device_);
  const std::lock_guard lock(mutex_);
  placement_.reset();
  outside_ = outside;
  planned_for_ = activations_.largest();
  plan_ = std::move(best);
  readiness_ = engine_ ? Readiness::placed : Readiness::measured;
  sequences_.clear();
  sequences_by_shape_.clear();
  for (const auto& [name, steps] : measured_) {
    sequences_[name] = std::make_shared<const Sequence>(streamed_sequence(pass_of(steps), plan_.residency.resident));
  }
}

/// What a call is expected to lease: as the last call of its shape did, or of its method, or else as the graph has it.
std::shared_ptr<const Sequence> Module::Impl::sequence_of(const std::string& name, std::size_t shape) {
  const std::lock_guard lock(mutex_);
  if (const auto known = sequences_by_shape_.find(shape); known != sequences_by_shape_.end()) {
    return known->second;
  }
  auto& sequence = sequences_[name];
  if (!sequence) {
    sequence =
        std::make_shared<const Sequence>(streamed_sequence(pass_of(static_steps(name)), plan_.residency.resident));
  }
  return sequence;
}

void Module::Impl::record_sequence(const std::string& name, std::size_t shape,
                                   std::shared_ptr<const Sequence> sequence) {
  constexpr std::size_t kShapes = 256; // more come where every call has another
  if (sequences_by_shape_.size() >= kShapes && sequences_by_shape_.count(shape) == 0) {
    sequences_by_shape_.clear();
  }
  sequences_by_shape_[shape] = sequence;
  sequences_[name] = std::move(sequence);
}

void Module::Impl::record_peak() {
  const std::uint64_t now = fixed_ + engine_->placed_bytes() + engine_->lanes().held();
  if (device_.is_cuda()) {
    device_promise_.raise_to(now); // by default calls may have taken more than was planned
  }
  const std::lock_guard lock(mutex_);
  peak_ = std::max(peak_, now);
}

void Module::Impl::set_vram_budget(std::uint64_t bytes) {
  require_no_call_around("a new budget");
  const ExclusiveVisit alone(*gate_);
  require_minimum(bytes);
  engine_->check_file();
  const auto before = std::make_pair(vram_, free_);
  const auto set = [&](const std::pair<std::uint64_t, std::optional<std::uint64_t>>& budget) {
    const std::lock_guard lock(mutex_);
    std::tie(vram_, free_) = budget;
    placement_.reset();
  };
  set({bytes, std::nullopt}); // from here on others see it
  {
    const std::lock_guard lock(mutex_);
    peak_ = 0;
    std::erase_if(refused_, [&](const auto& refused) { return refused.second <= bytes; });
  }
  if (readiness_ == Readiness::unknown) {
    placed_->clear();
    Plan best = best_plan();
    device_promise_.set(promised_bytes(best.residency));
    const std::lock_guard lock(mutex_);
    plan_ = std::move(best);
    placement_.reset();
    return; // the next call measures, and plans
  }
  try {
    replan();
  } catch (...) {
    set(before);
    replan(); // what fitted before; if even that has gone, its error tells
    throw;
  }
}

} // namespace offload
