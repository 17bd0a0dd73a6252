// How one call runs, from its arguments to its output; see module_impl.h.

#include <ATen/autocast_mode.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <unordered_map>
#include <unordered_set>

#include <offload/runtime/call_scope.h>
#include <offload/runtime/module_impl.h>
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

} // namespace

/// `trace` is given for calls that are measured.
Module::Impl::Made Module::Impl::run_on(int lane, const Request& request, Lanes::Overflow overflow,
                                        std::vector<LeasedStep>* trace) {
  Made made;
  engine_->lanes().run(lane, [&] { made = run_here(lane, request, overflow, trace); });
  return made;
}

Module::Impl::Made Module::Impl::run_here(int lane, const Request& request, Lanes::Overflow overflow,
                                          std::vector<LeasedStep>* trace) {
  const CallScope in_call(this);
  Streamer& streamer = engine_->streamer();
  const std::vector<c10::IValue> inputs(request.stack.begin() + 1, request.stack.end());
  const auto expected = sequence_of(request.method, request.shape);
  const LoweredMethod& lowered = method(request.method);
  const bool gradients = lowered.gradients == Gradients::callers && at::GradMode::is_enabled();
  const GradientBoundary boundary = lowered.holds_weights ? GradientBoundary(inputs) : GradientBoundary();
  engine_->retry();
  const at::NoGradGuard no_grad;
  const NoAutocastCache no_cache;
  Made made;
  Sequence executed;
  const auto call = engine_->lanes().enter(lane, overflow, trace != nullptr);
  std::optional<Restart> restart;
  try {
    if (device_.is_cuda()) {
      const std::vector<c10::IValue> arguments(inputs.begin(), inputs.end() - (lowered.takes_constants ? 1 : 0));
      restart.emplace(arguments, state_before(request), generators_);
    }
    const WeightLender::Scope scope(engine_->lender(), lane, trace, [&] { return call->must_stop(); });
    streamer.begin(lane, expected);
    try {
      made.output =
          detach_outputs(*call, run_code(codes_.at(request.method), request.stack, gradients), inputs, boundary);
    } catch (...) {
      streamer.end(lane);
      if (scope.failure() && !call->overflowed()) {
        std::rethrow_exception(scope.failure());
      }
      throw;
    }
    executed = streamer.end(lane);
    scope.check_mapping();
  } catch (const std::exception& error) {
    if (!call->overflowed()) {
      lowered.require_gradients(gradients, error.what());
      throw;
    }
  }
  const bool ended = made.output.has_value();
  std::exception_ptr lost;
  if (call->overflowed()) {
    made.output.reset();
    try {
      if (restart) { // else nothing has been run yet
        restart->restore();
      }
    } catch (...) {
      lost = std::current_exception();
    }
  }
  restart.reset();
  made.memory = call->end();
  made.ended = ended;
  record_peak();
  record_memory(request, made.memory, ended);
  if (lost) {
    std::rethrow_exception(lost);
  }
  if (!made.output) {
    return made;
  }
  auto next = expected;
  {
    const std::lock_guard lock(mutex_);
    ++calls_;
    if (executed != *expected) {
      next = std::make_shared<const Sequence>(std::move(executed));
    }
    record_sequence(request.method, request.shape, next);
  }
  if (!trace) {
    streamer.expect(lane, next);
  }
  return made;
}

/// What the call may write in the module; nothing where calls like it are known to fit. Weights that are planned are
/// written by none.
std::optional<StateSnapshot> Module::Impl::state_before(const Request& request) const {
  {
    const std::lock_guard lock(mutex_);
    if (!program_.writes_state || activations_.knows(request.shape)) {
      return std::nullopt;
    }
  }
  return StateSnapshot(program_.holders, [&](const at::Tensor& tensor) {
    return is_weight_like(tensor) && engine_->owns(tensor.storage().data());
  });
}

void Module::Impl::record_memory(const Request& request, const CallMemory& memory, bool ended) {
  if (!device_.is_cuda()) {
    return;
  }
  const std::lock_guard lock(mutex_);
  const std::uint64_t before = activations_.largest() + state_;
  // What a call writes anew is there beside what it replaces.
  state_ = std::max(state_, 2 * engine_->lanes().state());
  repeated_ += memory.overflowed ? 1 : 0;
  if (ended) {
    activations_.record(request.shape, memory.bytes);
  } else {
    activations_.record_at_least(request.shape, std::min(memory.bytes, gate_->room())); // no plan leaves it more
  }
  if (activations_.largest() + state_ != before) {
    placement_.reset();
  }
  const bool much_less = activations_.largest() < planned_for_ / 4 * 3;
  if (readiness_ == Readiness::placed && much_less && plan_.residency.ring_bytes > 0) {
    readiness_ = Readiness::measured; // what was kept for larger calls becomes room for weights
  }
}

/// What the call has put into the module moves out of the lane's memory.
void Module::Impl::retain_state(Lanes::Call& call) {
  if (!program_.writes_state || !device_.is_cuda()) {
    return;
  }
  std::vector<at::Tensor> written;
  std::unordered_map<const void*, std::size_t> positions;
  for (const torch::jit::Module& holder : program_.holders) {
    visit_tensors("", holder._ivalue(), [&](const std::string&, const at::Tensor& tensor) {
      if (is_weight_like(tensor) && !placeholder_record(tensor) && engine_->lanes().owns(tensor.storage().data()) &&
          positions.emplace(tensor.unsafeGetTensorImpl(), written.size()).second) {
        written.push_back(tensor);
      }
    });
  }
  if (written.empty()) {
    return;
  }
  const std::vector<at::Tensor> kept =
      copy_together(written, [&](const std::vector<at::Tensor>& bytes) { return call.keep(bytes); });
  replace_tensors(program_.holders, [&](const at::Tensor& tensor) {
    const auto position = positions.find(tensor.unsafeGetTensorImpl());
    return position == positions.end() ? tensor : kept[position->second];
  });
}

/// Copies what must not leave the call: memory of its lane, of leases, and weights themselves. It may leave through
/// `inputs`, too: the containers among them belong to the caller, and the model may have put tensors into them.
c10::IValue Module::Impl::detach_outputs(Lanes::Call& call, const c10::IValue& output,
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
    const Lanes& lanes = engine_->lanes();
    return engine_->owns(address) || fixed_memory_.contains(address) || lanes.owns(address) || lanes.keeps(address);
  };
  std::vector<at::Tensor> inner;
  std::unordered_map<const void*, std::size_t> copied; // their positions: one may be met several times
  for (c10::IValue& value : values) {
    value = map_tensors(
        value,
        [&](const at::Tensor& tensor) {
          const at::Tensor filled = placeholder_record(tensor) ? host_copy(tensor).to(device_) : boundary.leave(tensor);
          if (must_be_copied(filled) && copied.emplace(filled.unsafeGetTensorImpl(), inner.size()).second) {
            inner.push_back(filled);
          }
          return filled;
        },
        belongs_to_caller);
  }
  if (boundary.cuts() && program_.writes_state) {
    replace_tensors(program_.holders, [&](const at::Tensor& tensor) { return boundary.leave(tensor); });
  }
  retain_state(call);
  const std::vector<at::Tensor> outer = call.leave(inner);
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
