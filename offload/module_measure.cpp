// How a module finds out what its calls need; see module_impl.h.

#include <algorithm>
#include <numeric>
#include <utility>

#include <offload/bytes.h>
#include <offload/error.h>
#include <offload/module_impl.h>
#include <offload/state.h>

namespace offload {

/// What a measuring call runs with. On a device little more than the smallest ring, since activations want room as
/// well, and nothing more where those that find none cannot be measured. On the host they are no matter: as it will be
/// planned, as far as the graph tells, so that what stays is brought once.
Residency Module::Impl::residency_to_measure() const {
  if (device_.is_cpu()) {
    return best_plan().residency;
  }
  const std::uint64_t least = minimum() - fixed_ - reserve();
  const std::uint64_t rest = vram_ - fixed_;
  const std::uint64_t spare = may_overflow_ && rest > least + reserve() ? (rest - least - reserve()) / 2 : 0;
  const std::uint64_t weights = std::accumulate(bytes_.begin(), bytes_.end(), std::uint64_t{0});
  const std::uint64_t more = std::min({spare, 8 * kBatchBytes, weights - std::min(weights, least)});
  return {std::vector<bool>(bytes_.size(), false), least + more / granularity(device_) * granularity(device_)};
}

/// A call that shows what calls need. The caller holds all lanes.
c10::IValue Module::Impl::measure(const std::string& name, std::vector<c10::IValue> stack) {
  Lanes& lanes = engine_->lanes();
  Residency residency = residency_to_measure();
  lanes.set_capacity({}, activations_.state);
  install(residency, Leased::all);
  const std::size_t shape = shape_of_call(name, stack);
  {
    const std::lock_guard lock(mutex_);
    plan_.residency = std::move(residency);
    sequences_.clear();
    sequences_by_shape_.clear();
  }
  std::vector<LeasedStep> trace;
  MeasuredCall measured;
  const auto end_measuring = [&] {
    note_peak();
    measured = lanes.end_measuring();
  };
  lanes.begin_measuring(vram_ - fixed_ - engine_->slab_bytes(), activations_.capacity, may_overflow_);
  c10::IValue output;
  try {
    output = run_on(0, name, std::move(stack), &trace);
  } catch (...) {
    end_measuring();
    throw;
  }
  end_measuring();
  if (device_.is_cuda()) {
    activations_.add(shape, std::move(measured));
  }
  measured_[name] = std::move(trace);
  planned_method_ = measured_.count(planned_method_) > 0 ? planned_method_ : name;
  return output;
}

/// Refuses the budget if the calls that were measured do not fit it.
void Module::Impl::require_minimum() const {
  const std::uint64_t least = minimum();
  if (vram_ >= least) {
    return;
  }
  throw BudgetError(
      (measured_.empty() || reserve() == 0 ? "" : "activations and workspaces take " + format_bytes(reserve()) + ": ") +
          "vram_budget " + format_bytes(vram_) + " (" + std::to_string(vram_) +
          " bytes) is too small: the smallest that works is " + std::to_string(least) + " bytes",
      least);
}

void Module::Impl::refuse_activations(const Refusal& refusal) {
  const std::lock_guard lock(mutex_);
  if (refusal.by_driver) {
    throw Error("the device has no " + format_bytes(refusal.bytes) +
                " for activations and workspaces of this call, which a vram_budget of " + format_bytes(vram_) +
                " has room for: free device memory, or lower vram_budget");
  }
  const std::uint64_t needed =
      minimum() + align_up(refusal.bytes, kDeviceGranularity) * static_cast<std::uint64_t>(lanes_);
  readiness_ = Readiness::unknown; // the next call is measured anew, with all the budget that there is
  throw BudgetError("activations and workspaces of this call go over the reserve of " + format_bytes(reserve()) +
                        " in a vram_budget of " + format_bytes(vram_) + ": it takes up to " + std::to_string(needed) +
                        " bytes; the next call is measured anew. Name such a call in example_calls to plan for it",
                    needed);
}

/// What it writes is put back: an example is no call.
void Module::Impl::measure_example(const ExampleCall& call) {
  std::optional<StateSnapshot> before;
  if (program_.writes_state) {
    before.emplace(program_.holders);
  }
  try {
    measure(call.method, make_stack(method(call.method), call.inputs, call.kwargs));
  } catch (...) {
    engine_->lanes().synchronize();
    if (before) {
      before->restore();
    }
    throw;
  }
  if (before) {
    engine_->lanes().synchronize();
    before->restore();
  }
}

} // namespace offload
