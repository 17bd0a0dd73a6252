// How a module is planned and placed; see module_impl.h.

#include <algorithm>
#include <map>
#include <utility>

#include <offload/bytes.h>
#include <offload/runtime/module_impl.h>
#include <offload/runtime/outside_bytes.h>

namespace offload {

/// What calls may take beside what is placed; on a host whatever they need.
std::uint64_t Module::Impl::room() const {
  return model_.device.is_cuda() ? device_budget().room(engine().placed_bytes()) : ~std::uint64_t{0};
}

/// What weights, ring and calls take on the device.
std::uint64_t Module::Impl::planned_bytes(const Residency& residency) const {
  return model_.fixed + align_up(bytes_of(residency), granularity(model_.device)) + device_budget().reserve();
}

/// What others must not count as free. On a GPU calls may take all of a budget that was given; of what is free by
/// default they count with what it takes as planned. On the host, what stays has its memory, and what is resident and
/// lies in memory is used there.
std::uint64_t Module::Impl::promised_bytes(const Residency& residency) const {
  if (model_.device.is_cuda()) {
    return given_.free ? std::min(given_.vram, planned_bytes(residency)) : given_.vram;
  }
  return std::min(given_.vram, bytes_taken_on_host(residency, *model_.weights));
}

/// Plans, and places accordingly if there is an engine. Callers hold all lanes, or are alone.
/// Where it throws, nothing is placed: the next call tries again. But where it throws since the file has changed, all
/// is as it was.
void Module::Impl::replan() {
  if (adopted_) {
    engine().check_file();
  }
  {
    const std::lock_guard lock(mutex_);
    readiness_ = Readiness::measured;
  }
  Plan best = observed_.plan(given_.vram);
  const std::uint64_t promised = promised_bytes(best.residency);
  device_promise_.raise_to(promised);
  if (adopted_) {
    engine().lanes().release();
    adopted_->placed->install(best.residency, PlacedModule::Leased::streamed);
    gate_->set_room(room());
    record_peak();
  }
  device_promise_.set(promised);
  std::map<std::string, SequencePtr> sequences;
  for (const auto& [name, steps] : observed_.measured()) {
    sequences[name] = std::make_shared<const Sequence>(streamed_sequence(model_.pass_of(steps), best.residency));
  }
  const std::uint64_t outside = outside_bytes(model_.device);
  const std::lock_guard lock(mutex_);
  placement_.reset();
  planned_.outside = outside;
  planned_.largest_call = observed_.activations.largest();
  planned_.plan = std::move(best);
  readiness_ = adopted_ ? Readiness::placed : Readiness::measured;
  sequences_.reset(std::move(sequences));
}

void Module::Impl::record_peak() {
  const std::uint64_t now = model_.fixed + engine().placed_bytes() + engine().lanes().held();
  if (model_.device.is_cuda()) {
    device_promise_.raise_to(now); // by default calls may have taken more than was planned
  }
  const std::lock_guard lock(mutex_);
  counts_.peak = std::max(counts_.peak, now);
}

void Module::Impl::set_vram_budget(std::uint64_t bytes) {
  require_no_call_around("a new budget");
  const ExclusiveLaneLock alone(*gate_);
  require_minimum(bytes);
  engine().check_file();
  const GivenBudget before = given_;
  const auto set = [&](const GivenBudget& budget) {
    const std::lock_guard lock(mutex_);
    given_ = budget;
    placement_.reset();
  };
  set({bytes, std::nullopt}); // from here on others see it
  {
    const std::lock_guard lock(mutex_);
    counts_.peak = 0;
    std::erase_if(refused_, [&](const auto& refused) { return refused.second <= bytes; });
  }
  if (readiness_ == Readiness::unknown) {
    adopted_->placed->clear();
    Plan best = observed_.plan(given_.vram);
    device_promise_.set(promised_bytes(best.residency));
    const std::lock_guard lock(mutex_);
    planned_.plan = std::move(best);
    placement_.reset();
    return; // the next call measures, and plans
  }
  try {
    replan();
  } catch (...) {
    set(before);
    replan(); // what fitted before; if even that has gone, its error says so
    throw;
  }
}

} // namespace offload
