// One call, from its arguments to its output.

#include <offload/runtime/executor.h>

#include <ATen/Context.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/grad_mode.h>
#include <c10/util/ThreadLocalDebugInfo.h>

#include <algorithm>
#include <atomic>
#include <unordered_set>
#include <utility>

#include <offload/device/torch_versions.h>
#include <offload/runtime/state.h>

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

/// Says that this thread computes a call that has a lane of `transport`, for as long as this lives: see Note [Guards of
/// a call]. PyTorch hands it on to the threads that work for the call: of lanes, at::launch, and autograd.
class CallScope {
 public:
  explicit CallScope(const Transport* transport)
      : info_(std::make_shared<Info>(transport, Info::current())), guard_(kCallScopeSlot, info_) {}
  ~CallScope() { info_->ended = true; } // a thread that was started in the call may still have it
  CallScope(const CallScope&) = delete;
  CallScope& operator=(const CallScope&) = delete;

  /// True where a call on `transport` waits for what this thread does: on the way there may be calls on others.
  static bool is_within(const Transport* transport) {
    for (const Info* info = Info::current(); info; info = info->outer) {
      if (info->transport == transport && !info->ended) {
        return true;
      }
    }
    return false;
  }

 private:
  struct Info final : c10::DebugInfoBase {
    Info(const Transport* of, const Info* around) : transport(of), outer(around) {}
    static const Info* current() { return dynamic_cast<const Info*>(c10::ThreadLocalDebugInfo::get(kCallScopeSlot)); }

    const Transport* const transport;
    const Info* const outer; // PyTorch keeps it for as long as this
    std::atomic<bool> ended = false;
  };

  const std::shared_ptr<Info> info_;
  const c10::DebugInfoGuard guard_;
};

} // namespace

Executor::Executor(const Model& model, Transport& transport, Engine& engine, PlacedModule& placed,
                   const DeviceMemory& fixed)
    : model_(model), transport_(transport), engine_(engine), placed_(placed), fixed_(fixed) {
  const auto& methods = model.program.methods;
  const bool draws = std::any_of(methods.begin(), methods.end(),
                                 [](const auto& entry) { return entry.second.draws_random_numbers(); });
  if (model.device.is_cuda() && draws) {
    generators_ = {at::globalContext().defaultGenerator(model.device), at::globalContext().defaultGenerator(c10::kCPU)};
  }
}

bool is_within_call_on(const Transport& transport) { return CallScope::is_within(&transport); }

Made Executor::run(int lane, const Request& request, const How& how) {
  Made made;
  transport_.lanes().run(lane, [&] { made = run_here(lane, request, how); });
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

Made Executor::run_here(int lane, const Request& request, const How& how) {
  const CallScope in_call(&transport_);
  const std::shared_ptr<Streamer> streamer = transport_.streamer();
  const LoweredMethod& lowered = find_method(model_.program, request.method);
  const std::vector<c10::IValue> arguments(request.stack.begin() + 1,
                                           request.stack.end() - (lowered.takes_constants ? 1 : 0));
  const bool gradients = lowered.gradients == Gradients::callers && at::GradMode::is_enabled();
  const GradientBoundary boundary = lowered.holds_weights ? GradientBoundary(arguments) : GradientBoundary();
  engine_.retry();
  const at::NoGradGuard no_grad;
  const NoAutocastCache no_cache;
  Made made;
  const auto call = transport_.lanes().enter(lane, how.overflow, how.trace != nullptr);
  std::optional<Restart> restart;
  try {
    if (model_.device.is_cuda()) {
      std::optional<StateSnapshot> state;
      if (model_.program.writes_state && !how.is_known_to_fit) {
        state.emplace(model_.program.holders,
                      [&](const at::Tensor& tensor) { // weights that are planned are never written
                        return is_weight_like(tensor) && engine_.owns(tensor.storage().data());
                      });
      }
      restart.emplace(arguments, std::move(state), generators_);
    }
    made.clock = how.is_timed ? call->make_clock() : nullptr;
    const WeightLender::Scope scope(engine_.lender(), streamer, lane, how.trace, made.clock.get(),
                                    [&] { return call->must_stop(); });
    streamer->begin(lane, how.expected, engine_.first_in_ring(), how.priority);
    try {
      if (made.clock) {
        made.clock->begin_lap();
      }
      made.output = detach_outputs(*call, lowered.run(request.stack, gradients), arguments, boundary);
      if (made.clock) {
        made.clock->end_lap();
      }
    } catch (...) {
      streamer->end(lane);
      if (scope.failure() && !call->overflowed()) {
        std::rethrow_exception(scope.failure());
      }
      throw;
    }
    made.streamed = streamer->end(lane);
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

/// What the call has put into the module moves out of the lane's memory.
void Executor::retain_state(Lanes::Call& call) {
  if (!model_.program.writes_state || !model_.device.is_cuda()) {
    return;
  }
  std::vector<at::Tensor> written;
  std::unordered_map<const void*, std::size_t> positions;
  for (const c10::IValue& holder : model_.program.holders) {
    visit_tensors("", holder, [&](const std::string&, const at::Tensor& tensor) {
      if (is_weight_like(tensor) && !placeholder_record(tensor) && transport_.lanes().owns(tensor.storage().data()) &&
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
  replace_tensors(model_.program.holders, [&](const at::Tensor& tensor) {
    const auto position = positions.find(tensor.unsafeGetTensorImpl());
    return position == positions.end() ? tensor : kept[position->second];
  });
}

/// Copies what must not leave the call: memory of its lane, of leases, and weights themselves. It may leave through
/// `arguments`, too: the containers among them belong to the caller, and the model may have put tensors into them.
c10::IValue Executor::detach_outputs(Lanes::Call& call, const c10::IValue& output,
                                     const std::vector<c10::IValue>& arguments, const GradientBoundary& boundary) {
  std::vector<c10::IValue> values = {output};
  std::unordered_set<const void*> callers;
  for (const c10::IValue& argument : arguments) {
    const std::size_t before = callers.size();
    if (!argument.isObject()) {
      visit_containers(argument, [&](const c10::IValue& container) { callers.insert(container.internalToPointer()); });
    }
    if (callers.size() > before) {
      values.push_back(argument);
    }
  }
  const auto replace_in_values = [&](const Replace& replace) {
    for (c10::IValue& value : values) {
      value = map_tensors(value, replace, [&](const c10::IValue& container) {
        return callers.count(container.internalToPointer()) > 0;
      });
    }
  };
  const auto must_be_copied = [&](const at::Tensor& tensor) {
    if (!is_weight_like(tensor) || tensor.numel() == 0) {
      return false;
    }
    const void* address = tensor.storage().data();
    const Lanes& lanes = transport_.lanes();
    return engine_.owns(address) || fixed_.contains(address) || lanes.owns(address) || lanes.retains(address);
  };
  std::vector<at::Tensor> inner;
  std::unordered_map<const void*, std::size_t> copied; // their positions: one may be met several times
  replace_in_values([&](const at::Tensor& tensor) {
    const at::Tensor filled =
        placeholder_record(tensor) ? placed_.host_copy(tensor).to(model_.device) : boundary.detach(tensor);
    if (must_be_copied(filled) && copied.emplace(filled.unsafeGetTensorImpl(), inner.size()).second) {
      inner.push_back(filled);
    }
    return filled;
  });
  if (boundary.cuts() && model_.program.writes_state) {
    replace_tensors(model_.program.holders, [&](const at::Tensor& tensor) { return boundary.detach(tensor); });
  }
  retain_state(call);
  const std::vector<at::Tensor> outer = call.detach(inner);
  replace_in_values([&](const at::Tensor& tensor) {
    const auto copy = copied.find(tensor.unsafeGetTensorImpl());
    return copy == copied.end() ? tensor : outer[copy->second];
  });
  return values.front();
}

} // namespace offload
