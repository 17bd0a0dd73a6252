// How a module finds out what its calls need; see module_impl.h.

#include <algorithm>
#include <utility>

#include <offload/bytes.h>
#include <offload/error.h>
#include <offload/runtime/arguments.h>
#include <offload/runtime/module_impl.h>
#include <offload/runtime/state.h>

namespace offload {

/// What a measuring call runs with. On a device little more than the smallest ring, since activations want room as
/// well, or just that. On the host they are no matter: as it will be planned, as far as the graph shows, so that what
/// stays is brought once.
Residency Module::Impl::residency_to_measure(Ring ring) const {
  if (model_.device.is_cpu()) {
    return observed_.plan(given_.vram).residency;
  }
  const DeviceBudget budget = device_budget();
  const std::uint64_t least = align_up(budget.least_ring, budget.unit);
  const std::uint64_t taken = model_.fixed + least + budget.least_reserve();
  const std::uint64_t spare = ring == Ring::least ? 0 : (given_.vram - std::min(given_.vram, taken)) / 2;
  const std::uint64_t weights = bytes_of(all_resident(*model_.weights));
  const std::uint64_t more = std::min({spare, 8 * kBatchBytes, weights - std::min(weights, least)});
  return {std::vector<std::uint64_t>(model_.count()), least + more / kDeviceGranularity * kDeviceGranularity};
}

/// A call that shows what calls need: with a ring that streams well, and where that leaves too little for activations,
/// again with the smallest. The caller holds all lanes.
c10::IValue Module::Impl::measure(const Request& request) {
  for (const Ring ring : {Ring::ample, Ring::least}) {
    Residency residency = residency_to_measure(ring);
    const bool is_last = ring == Ring::least || residency.ring_bytes == residency_to_measure(Ring::least).ring_bytes;
    engine().lanes().release();
    adopted_->placed->install(residency, PlacedModule::Leased::all);
    gate_->set_room(room());
    {
      const std::lock_guard lock(mutex_);
      planned_.plan.residency = std::move(residency);
      placement_.reset();
    }
    sequences_.reset({});
    std::vector<LeasedStep> trace;
    // What it takes is to be known to its end before it is refused.
    const bool lends = is_last && may_overflow_;
    const Lanes::Overflow overflow = lends ? Lanes::Overflow::lend : Lanes::Overflow::stop;
    Made made = make_call(0, request, overflow, &trace);
    if (is_last && !made.output && made.memory.bytes <= gate_->room() && !made.memory.by_device) {
      trace.clear(); // it has room where what libraries work in is there from the beginning, as it is from now on
      engine().lanes().release();
      made = make_call(0, request, overflow, &trace);
    }
    if (made.output) {
      const std::lock_guard lock(mutex_);
      placement_.reset();
      observed_.record_steps(request.method, std::move(trace));
      return std::move(*made.output);
    }
    if (is_last || made.memory.by_device) {
      refuse(request, made);
    }
  }
  throw Error("a call was neither made nor refused"); // not reached: the last ring does one or the other
}

/// As in "vram_budget 1 MiB (1048576 bytes)", and, where it was not given, where it comes from.
std::string Module::Impl::describe_budget(std::uint64_t vram) const {
  return "vram_budget " + format_bytes(vram) + " (" + std::to_string(vram) + " bytes" +
         (given_.free && vram == given_.vram ? "; none was given, and " + format_bytes(*given_.free) + " are free"
                                             : "") +
         ")";
}

/// Refuses a budget if the calls that were measured do not fit it. What no call has shown yet is no reason.
void Module::Impl::require_minimum(std::uint64_t vram) const {
  const DeviceBudget budget = device_budget();
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

/// A call that does not fit, whatever gives way to it. It leaves nothing behind that calls to come are planned with.
void Module::Impl::refuse(const Request& request, const Made& made) {
  const std::lock_guard lock(mutex_);
  const std::uint64_t least = device_budget().minimum();
  observed_.activations.remove(request.shape);
  placement_.reset();
  if (made.memory.by_device) {
    throw Error("the device has less than the " + format_bytes(made.memory.bytes) +
                " that activations and workspaces of this call take, and a vram_budget of " +
                format_bytes(given_.vram) + " has room for: free device memory, or lower vram_budget");
  }
  if (made.ended) {
    refused_[request.shape] = least;
  }
  throw BudgetError("activations and workspaces of this call take " + std::string(made.ended ? "" : "more than ") +
                        format_bytes(made.memory.bytes) + ": " + describe_budget(given_.vram) +
                        " is too small: the smallest that works is " + (made.ended ? "" : "over ") +
                        std::to_string(least) + " bytes",
                    least);
}

/// A call that did not find room in turn, and is known to fit in no way, is refused without being measured again.
void Module::Impl::refuse_again(const Request& request, std::uint64_t exhausted_room) {
  const std::lock_guard lock(mutex_);
  const auto refused = refused_.find(request.shape);
  if (refused != refused_.end() && exhausted_room > 0) {
    throw BudgetError("activations and workspaces of this call are known not to fit " + describe_budget(given_.vram) +
                          ": the smallest that works is " + std::to_string(refused->second) + " bytes",
                      refused->second);
  }
}

/// What it writes is put back: an example is no call.
void Module::Impl::measure_example(const ExampleCall& call) {
  std::optional<StateSnapshot> before;
  if (model_.program.writes_state) {
    before.emplace(model_.program.holders, [](const at::Tensor&) { return false; });
  }
  try {
    Request request{
        call.method,
        make_stack(model_.program, find_method(model_.program, call.method), model_.device, call.inputs, call.kwargs),
        0};
    request.shape = shape_of_call(call.method, request.stack);
    measure(request);
    const std::lock_guard lock(mutex_);
    observed_.activations.pin(request.shape);
  } catch (...) {
    engine().lanes().synchronize();
    if (before) {
      before->restore();
    }
    throw;
  }
  if (before) {
    engine().lanes().synchronize();
    before->restore();
  }
}

} // namespace offload
