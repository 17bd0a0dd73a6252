#include <offload/runtime/plan_state.h>

#include <algorithm>
#include <utility>

#include <offload/bytes.h>
#include <offload/error.h>

namespace offload {

std::uint64_t planned_bytes(const Model& model, const Residency& residency, const DeviceBudget& budget) {
  return model.fixed + align_up(bytes_of(residency), granularity(model.device)) + budget.reserve();
}

/// The caller holds the mutex.
void PlanState::change() {
  ++changes_;
  placement_.reset();
}

GivenBudget PlanState::given() const {
  const std::lock_guard lock(mutex_);
  return given_;
}

void PlanState::give(const GivenBudget& given) {
  const std::lock_guard lock(mutex_);
  given_ = given;
  counts_.peak = 0;
  std::erase_if(refused_, [&](const auto& refused) { return refused.second <= given.vram; });
  change();
}

DeviceBudget PlanState::budget() const {
  const std::lock_guard lock(mutex_);
  return observed_.divide(given_.vram);
}

/// As in "vram_budget 1 MiB (1048576 bytes)", and, where it was not given, where it comes from.
std::string PlanState::describe_budget(std::uint64_t vram) const {
  return "vram_budget " + format_bytes(vram) + " (" + std::to_string(vram) + " bytes" +
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
  if (vram + assumed >= least) {
    return;
  }
  throw BudgetError((observed_.measured().empty() || for_calls == 0
                         ? ""
                         : "activations and workspaces take " + format_bytes(for_calls) + ": ") +
                        describe_budget(vram) + " is too small: the smallest that works is " + std::to_string(least) +
                        " bytes",
                    least);
}

std::uint64_t PlanState::promised_bytes(const Residency& residency) const {
  const std::lock_guard lock(mutex_);
  if (model_.device.is_cuda() && !given_.free) {
    return given_.vram;
  }
  return std::min(given_.vram, model_.device.is_cuda() ? planned_bytes(model_, residency, observed_.divide(given_.vram))
                                                       : bytes_taken_on_host(residency, *model_.weights));
}

PlanState::Readiness PlanState::readiness() const {
  const std::lock_guard lock(mutex_);
  return readiness_;
}

void PlanState::set_readiness(Readiness readiness) {
  const std::lock_guard lock(mutex_);
  readiness_ = readiness;
}

Plan PlanState::make_plan() const {
  const auto [known, vram] = [&] {
    const std::lock_guard lock(mutex_);
    return std::pair(observed_, given_.vram);
  }();
  return known.plan(vram);
}

void PlanState::set_plan(Plan plan, Readiness readiness) {
  const std::lock_guard lock(mutex_);
  plan_ = std::move(plan);
  planned_call_ = observed_.activations.largest();
  readiness_ = readiness;
  change();
}

void PlanState::set_outside(std::uint64_t bytes) {
  const std::lock_guard lock(mutex_);
  outside_ = bytes;
  change();
}

void PlanState::keep_plan() {
  const std::lock_guard lock(mutex_);
  planned_call_ = observed_.activations.largest();
  readiness_ = Readiness::placed;
}

void PlanState::set_residency(Residency residency) {
  const std::lock_guard lock(mutex_);
  plan_.residency = std::move(residency);
  change();
}

Residency PlanState::residency() const {
  const std::lock_guard lock(mutex_);
  return plan_.residency;
}

std::uint64_t PlanState::expected_memory(std::size_t shape) const {
  const std::lock_guard lock(mutex_);
  return observed_.activations.expected(shape);
}

bool PlanState::knows(std::size_t shape) const {
  const std::lock_guard lock(mutex_);
  return observed_.activations.knows(shape);
}

void PlanState::record_call() {
  const std::lock_guard lock(mutex_);
  ++counts_.calls;
}

void PlanState::record_peak(std::uint64_t bytes_on_device) {
  const std::lock_guard lock(mutex_);
  counts_.peak = std::max(counts_.peak, bytes_on_device);
}

void PlanState::record_steps(const std::string& method, std::vector<LeasedStep> steps) {
  const std::lock_guard lock(mutex_);
  observed_.record_steps(method, std::move(steps));
  change();
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
    readiness_ = Readiness::measured; // what was kept for larger calls becomes room for weights
  }
}

void PlanState::pin(std::size_t shape) {
  const std::lock_guard lock(mutex_);
  observed_.activations.pin(shape);
}

void PlanState::refuse(std::size_t shape, const CallMemory& memory, bool ended) {
  const std::lock_guard lock(mutex_);
  const std::uint64_t least = observed_.divide(given_.vram).minimum();
  observed_.activations.remove(shape);
  change();
  if (memory.by_device) {
    throw Error("the device has less than the " + format_bytes(memory.bytes) +
                " that activations and workspaces of this call take, and a vram_budget of " +
                format_bytes(given_.vram) + " has room for: free device memory, or lower vram_budget");
  }
  if (ended) {
    refused_[shape] = least;
  }
  throw BudgetError("activations and workspaces of this call take " + std::string(ended ? "" : "more than ") +
                        format_bytes(memory.bytes) + ": " + describe_budget(given_.vram) +
                        " is too small: the smallest that works is " + (ended ? "" : "over ") + std::to_string(least) +
                        " bytes",
                    least);
}

void PlanState::refuse_again(std::size_t shape) const {
  const std::lock_guard lock(mutex_);
  const auto refused = refused_.find(shape);
  if (refused != refused_.end()) {
    throw BudgetError("activations and workspaces of this call are known not to fit " + describe_budget(given_.vram) +
                          ": the smallest that works is " + std::to_string(refused->second) + " bytes",
                      refused->second);
  }
}

Observations PlanState::observations() const {
  const std::lock_guard lock(mutex_);
  return observed_;
}

void PlanState::restore(Observations before, std::size_t shape) {
  const std::lock_guard lock(mutex_);
  before.record_state(observed_.state());
  observed_ = std::move(before); // allocates nothing
  observed_.activations.remove(shape);
  readiness_ = observed_.measured().empty() ? Readiness::unknown : Readiness::measured;
  change();
}

/// Described without the mutex: a reader stops no call.
Placement PlanState::placement() const {
  std::unique_lock lock(mutex_);
  if (placement_) {
    const std::shared_ptr<const Placement> known = placement_;
    lock.unlock();
    return *known;
  }
  const PlanSnapshot snapshot{observed_.divide(given_.vram), plan_, !observed_.measured().empty(), outside_};
  const std::uint64_t changes = changes_;
  lock.unlock();
  const auto made = std::make_shared<const Placement>(describe(model_, snapshot));
  lock.lock();
  placement_ = changes == changes_ ? made : placement_;
  lock.unlock();
  return *made;
}

void PlanState::report(Stats& stats) const {
  const std::lock_guard lock(mutex_);
  stats.calls = counts_.calls;
  stats.calls_repeated = counts_.repeated;
  stats.peak_device_bytes = counts_.peak;
  stats.bytes_resident = model_.fixed;
  if (readiness_ != Readiness::unknown) {
    stats.bytes_resident += bytes_of(plan_.residency) - plan_.residency.ring_bytes;
  }
}

} // namespace offload
