// One call, from its arguments to its output.

#include <offload/runtime/executor.h>

#include <ATen/Context.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include <offload/runtime/arguments.h>
#include <offload/runtime/call_scope.h>
#include <offload/runtime/restart.h>
#include <offload/tensor/values.h>

namespace offload {

namespace {

/// Autocast keeps what it casts, and with it the weights that were cast, for later calls: of leases there is no later.
class NoAutocastCache {
 public:
  NoAutocastCache() : before_(at::autocast::is_autocast_cache_enabled()) {
    at::autocast::set_autocast_cache_enabled(false);
  }
  ~NoAutocastCache() { at::autocast::set_autocast_cache_enabled(before_); }
  NoAutocastCache(const NoAutocastCache&) = delete;
  NoAutocastCache& operator=(const NoAutocastCache&) = delete;

 private:
  const bool before_;
};

bool draws_random_numbers(const Program& program) {
  return std::any_of(program.methods.begin(), program.methods.end(),
                     [](const auto& entry) { return entry.second.draws_random_numbers(); });
}

} // namespace

Executor::Executor(Program& program, Engine& engine, PlacedModule& placed, const DeviceMemory& fixed,
                   c10::Device device)
    : program_(program), engine_(engine), placed_(placed), fixed_(fixed), device_(device) {
  if (device.is_cuda() && draws_random_numbers(program)) {
    generators_ = {at::globalContext().defaultGenerator(device), at::globalContext().defaultGenerator(c10::kCPU)};
  }
}

bool Executor::is_within_call() const { return CallScope::is_within(this); }

Made Executor::run(int lane, const Request& request, const How& how) {
  Made made;
  engine_.lanes().run(lane, [&] { made = run_here(lane, request, how); });
  return made;
}

// Note [Guards of a call]
//
// What a call sets for its thread and its lane, in the order in which it is set. It is undone in the reverse order.
//
//    1  the caller's ThreadLocalState   CallThread::run     replaces the slots that 4 and 8 set: so before them
//    2  the caller's stream                                 makes the stream's device current: so before 3
//    3  the caller's current device
//    4  CallScope                       run_here            a slot of ThreadLocalDebugInfo, as 8: they have to nest
//    5  NoGradGuard, NoAutocastCache                        after the caller's gradient mode has been read
//    6  the mutex of the lane           CudaLane::Call      nobody drops workspaces of a lane whose mutex is held
//    7  the lane's device                                   current for the events that CudaCalls::begin makes
//       CudaCalls::begin                                    on the device this call comes after the lane's last one
//    8  MemoryScope                                         allocations of the thread come from the lane
//    9  workspaces of libraries                             taken from the lane: so after 8
//   10  Restart                         run_here            its copies lie in the lane: after 8, gone before Call::end
//   11  WeightLender::Scope                                 leases are given
//   12  the gradient mode of the model  LoweredMethod::run  for the model alone: copies around it have no gradients
//
// The call has its lane from the gate around all of it. 1 to 3 are there already when the caller's own thread computes;
// 6 to 10 are nothing on the host. CudaWorkspaces::find_handle comes before 8: what it may make is not the lane's. What
// may throw and needs no lane (Engine::retry) comes before 6.
//
// Call::end undoes 9, 8 and the call of 7, and may throw. Workspaces go back while 8 holds: asking for their handle may
// allocate. The call ends on the device (CudaCall::end) after the last copy of an output. Host memory that it was lent
// is freed only when the device has come that far.

/// See Note [Guards of a call].
Made Executor::run_here(int lane, const Request& request, const How& how) {
  const CallScope in_call(this);
  Streamer& streamer = engine_.streamer();
  const std::vector<c10::IValue> inputs(request.stack.begin() + 1, request.stack.end());
  const LoweredMethod& lowered = find_method(program_, request.method);
  const bool gradients = lowered.gradients == Gradients::callers && at::GradMode::is_enabled();
  const GradientBoundary boundary = lowered.holds_weights ? GradientBoundary(inputs) : GradientBoundary();
  engine_.retry();
  const at::NoGradGuard no_grad;
  const NoAutocastCache no_cache;
  Made made;
  const auto call = engine_.lanes().enter(lane, how.overflow, how.trace != nullptr);
  std::optional<Restart> restart;
  try {
    if (device_.is_cuda()) {
      const std::vector<c10::IValue> arguments(inputs.begin(), inputs.end() - (lowered.takes_constants ? 1 : 0));
      restart.emplace(arguments, how.is_known_to_fit ? std::nullopt : state_before(), generators_);
    }
    const WeightLender::Scope scope(engine_.lender(), lane, how.trace, [&] { return call->must_stop(); });
    streamer.begin(lane, how.expected);
    try {
      made.output = detach_outputs(*call, lowered.run(request.stack, gradients), inputs, boundary);
    } catch (...) {
      streamer.end(lane);
      if (scope.failure() && !call->overflowed()) {
        std::rethrow_exception(scope.failure());
      }
      throw;
    }
    made.executed = streamer.end(lane);
    scope.check_mapping();
  } catch (const std::exception& error) {
    if (!call->overflowed()) {
      lowered.require_gradients(gradients, error.what());
      throw;
    }
  }
  made.ended = made.output.has_value();
  if (call->overflowed()) {
    made.output.reset();
    try {
      if (restart) { // else nothing has been run yet
        restart->restore();
      }
    } catch (...) {
      made.lost = std::current_exception();
    }
  }
  restart.reset();
  made.memory = call->end();
  return made;
}

/// What the call may write in the module. Weights that are planned are written by none.
std::optional<StateSnapshot> Executor::state_before() const {
  if (!program_.writes_state) {
    return std::nullopt;
  }
  return StateSnapshot(program_.holders, [&](const at::Tensor& tensor) {
    return is_weight_like(tensor) && engine_.owns(tensor.storage().data());
  });
}

/// What the call has put into the module moves out of the lane's memory.
void Executor::retain_state(Lanes::Call& call) {
  if (!program_.writes_state || !device_.is_cuda()) {
    return;
  }
  std::vector<at::Tensor> written;
  std::unordered_map<const void*, std::size_t> positions;
  for (const c10::IValue& holder : program_.holders) {
    visit_tensors("", holder, [&](const std::string&, const at::Tensor& tensor) {
      if (is_weight_like(tensor) && !placeholder_record(tensor) && engine_.lanes().owns(tensor.storage().data()) &&
          positions.emplace(tensor.unsafeGetTensorImpl(), written.size()).second) {
        written.push_back(tensor);
      }
    });
  }
  if (written.empty()) {
    return;
  }
  const std::vector<at::Tensor> kept =
      copy_together(written, [&](const std::vector<at::Tensor>& bytes) { return call.retain(bytes); });
  replace_tensors(program_.holders, [&](const at::Tensor& tensor) {
    const auto position = positions.find(tensor.unsafeGetTensorImpl());
    return position == positions.end() ? tensor : kept[position->second];
  });
}

/// Copies what must not leave the call: memory of its lane, of leases, and weights themselves. It may leave through
/// `inputs`, too: the containers among them belong to the caller, and the model may have put tensors into them.
c10::IValue Executor::detach_outputs(Lanes::Call& call, const c10::IValue& output,
                                     const std::vector<c10::IValue>& inputs, const GradientBoundary& boundary) {
  std::vector<c10::IValue> values = {output};
  std::unordered_set<const void*> callers;
  for (const c10::IValue& input : inputs) {
    const std::size_t before = callers.size();
    if (!input.isObject()) {
      visit_containers(input, [&](const c10::IValue& container) { callers.insert(container.internalToPointer()); });
    }
    if (callers.size() > before) {
      values.push_back(input);
    }
  }
  const auto belongs_to_caller = [&](const c10::IValue& value) { return callers.count(value.internalToPointer()) > 0; };
  const auto must_be_copied = [&](const at::Tensor& tensor) {
    if (!is_weight_like(tensor) || tensor.numel() == 0) {
      return false;
    }
    const void* address = tensor.storage().data();
    const Lanes& lanes = engine_.lanes();
    return engine_.owns(address) || fixed_.contains(address) || lanes.owns(address) || lanes.retains(address);
  };
  std::vector<at::Tensor> inner;
  std::unordered_map<const void*, std::size_t> copied; // their positions: one may be met several times
  for (c10::IValue& value : values) {
    value = map_tensors(
        value,
        [&](const at::Tensor& tensor) {
          const at::Tensor filled =
              placeholder_record(tensor) ? placed_.host_copy(tensor).to(device_) : boundary.detach(tensor);
          if (must_be_copied(filled) && copied.emplace(filled.unsafeGetTensorImpl(), inner.size()).second) {
            inner.push_back(filled);
          }
          return filled;
        },
        belongs_to_caller);
  }
  if (boundary.cuts() && program_.writes_state) {
    replace_tensors(program_.holders, [&](const at::Tensor& tensor) { return boundary.detach(tensor); });
  }
  retain_state(call);
  const std::vector<at::Tensor> outer = call.detach(inner);
  for (c10::IValue& value : values) {
    value = map_tensors(
        value,
        [&](const at::Tensor& tensor) {
          const auto copy = copied.find(tensor.unsafeGetTensorImpl());
          return copy == copied.end() ? tensor : outer[copy->second];
        },
        belongs_to_caller);
  }
  return values.front();
}

} // namespace offload
