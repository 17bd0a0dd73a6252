// How a module is called; see module_impl.h.

#include <ATen/autocast_mode.h>
#include <ATen/core/grad_mode.h>
#include <c10/util/Exception.h>
#include <c10/util/hash.h>

#include <algorithm>
#include <numeric>
#include <string_view>
#include <tuple>
#include <unordered_map>
#include <unordered_set>

#include <offload/graph/values.h>
#include <offload/module_impl.h>
#include <offload/restart.h>

namespace offload {

const LoweredMethod& Module::Impl::method(const std::string& name) const {
  const auto found = program_.methods.find(name);
  if (found == program_.methods.end()) {
    std::string names;
    for (const auto& [other, lowered] : program_.methods) {
      names += (names.empty() ? "" : ", ") + other;
    }
    throw InputError("the module has no method '" + name + "'" + (names.empty() ? "" : ": it has " + names));
  }
  return found->second;
}

const c10::FunctionSchema& Module::Impl::schema(const std::string& name) const { return method(name).schema; }

namespace {

/// Tensors on another device would fail deep in the model; here the argument can be named.
void check_device(const c10::IValue& value, const std::string& argument, c10::Device device) {
  if (value.isTensor()) {
    const at::Tensor& tensor = value.toTensor();
    const bool scalar_on_host = tensor.defined() && tensor.dim() == 0 && tensor.device().is_cpu();
    if (tensor.defined() && tensor.device() != device && !scalar_on_host) {
      throw InputError("argument '" + argument + "' is on " + tensor.device().str() + ", the module runs on " +
                       device.str() + ": move it there with to()");
    }
  } else if (value.isTuple()) {
    for (const c10::IValue& element : value.toTupleRef().elements()) {
      check_device(element, argument, device);
    }
  } else if (value.isList()) {
    for (const c10::IValue& element : value.toListRef()) {
      check_device(element, argument, device);
    }
  } else if (value.isGenericDict()) {
    for (const auto& entry : value.toGenericDict()) {
      check_device(entry.value(), argument, device);
    }
  }
}

/// The same for values that are alike in what decides the memory of a call.
std::size_t shape_of(const c10::IValue& value) {
  std::size_t shape = std::hash<std::string>()(value.tagKind());
  const auto add = [&shape](std::size_t more) { shape = c10::hash_combine(shape, more); };
  if (value.isTensor() && value.toTensor().defined()) {
    const at::Tensor& tensor = value.toTensor();
    add(static_cast<std::size_t>(tensor.scalar_type()));
    if (tensor.layout() == at::kStrided) {
      for (std::int64_t dim = 0; dim < tensor.dim(); ++dim) {
        add(static_cast<std::size_t>(tensor.size(dim)));
        add(static_cast<std::size_t>(tensor.stride(dim)));
      }
    }
  } else if (value.isInt() || value.isBool()) {
    add(static_cast<std::size_t>(value.isInt() ? value.toInt() : static_cast<std::int64_t>(value.toBool())));
  } else if (value.isTuple()) {
    for (const c10::IValue& element : value.toTupleRef().elements()) {
      add(shape_of(element));
    }
  } else if (value.isList()) {
    for (const c10::IValue& element : value.toListRef()) {
      add(shape_of(element));
    }
  } else if (value.isGenericDict()) {
    for (const auto& entry : value.toGenericDict()) {
      add(shape_of(entry.value()));
    }
  }
  return shape;
}

} // namespace

std::size_t shape_of_call(const std::string& method, const std::vector<c10::IValue>& stack) {
  std::size_t shape = std::hash<std::string>()(method);
  for (std::size_t i = 1; i < stack.size(); ++i) {
    shape = c10::hash_combine(shape, stack[i].isObject() ? 0 : shape_of(stack[i]));
  }
  return shape;
}

std::vector<c10::IValue> Module::Impl::make_stack(const LoweredMethod& method, std::vector<c10::IValue> inputs,
                                                  const Kwargs& kwargs) const {
  method.require_gradients();
  std::vector<c10::IValue> stack = {module_._ivalue()};
  stack.insert(stack.end(), std::make_move_iterator(inputs.begin()), std::make_move_iterator(inputs.end()));
  try {
    method.schema.checkAndNormalizeInputs(stack, kwargs);
  } catch (const c10::Error& error) {
    throw InputError(error.what_without_backtrace());
  } catch (const std::exception& error) {
    throw InputError(error.what());
  }
  for (std::size_t i = 1; i < stack.size(); ++i) {
    check_device(stack[i], method.schema.arguments()[i].name(), device_);
  }
  if (method.takes_constants) {
    stack.emplace_back(program_.holders.back()._ivalue());
  }
  return stack;
}

c10::IValue Module::Impl::run_method(const std::string& name, std::vector<c10::IValue> inputs, const Kwargs& kwargs) {
  Request request{name, make_stack(method(name), std::move(inputs), kwargs), 0};
  request.shape = shape_of_call(name, request.stack);
  while (true) {
    refuse_again(request);
    if (auto output = call_in_turn(request)) {
      return std::move(*output);
    }
    if (auto output = call_alone(request)) {
      return std::move(*output);
    }
  }
}

/// Beside other calls, once it is this one's turn. None when something has to be planned first: for all calls, or since
/// this one takes more than the plan leaves it.
std::optional<c10::IValue> Module::Impl::call_in_turn(Request& request) {
  for (const bool takes_all : {false, true}) {
    const std::uint64_t expected = [&] {
      const std::lock_guard lock(mutex_);
      return activations_.expected(request.shape);
    }();
    const LaneVisit visit(*gate_, engine_->lanes().callers_stream(), takes_all ? ~std::uint64_t{0} : expected);
    const std::uint64_t room = gate_->room();
    {
      const std::lock_guard lock(mutex_);
      if (readiness_ != Readiness::placed || room <= request.too_little) {
        return std::nullopt;
      }
    }
    const bool has_all = takes_all || lanes_ == 1;
    Made made = run_on(visit.lane(), request, Lanes::Overflow::stop, nullptr);
    if (made.output) {
      return std::move(made.output);
    }
    if (made.memory.by_device) {
      refuse(request, made.memory);
    }
    if (has_all) {
      request.too_little = room;
      return std::nullopt;
    }
    // Others had what was missing: once more, when it has all.
  }
  return std::nullopt;
}

/// With nobody beside it. None when the call can go on in turn, since others have planned or this has.
std::optional<c10::IValue> Module::Impl::call_alone(Request& request) {
  const LoneVisit alone(*gate_);
  if (readiness_ == Readiness::measured) {
    settle();
    return std::nullopt;
  }
  if (readiness_ == Readiness::placed && gate_->room() > request.too_little) {
    return std::nullopt;
  }
  const auto before = std::make_tuple(activations_, measured_, planned_method_);
  c10::IValue output;
  try {
    output = measure(request);
    require_minimum();
  } catch (...) {
    const std::lock_guard lock(mutex_);
    std::tie(activations_, measured_, planned_method_) = before;
    placement_.reset();
    readiness_ = measured_.empty() ? Readiness::unknown : Readiness::measured;
    throw;
  }
  try {
    settle();
  } catch (const std::exception&) {
    // The output is right, and state was written: the next call tries again, and tells.
  }
  return output;
}

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
      restart.emplace(inputs, may_take_more(request) ? &program_.holders : nullptr, generators_);
    }
    const WeightLender::Scope scope(engine_->lender(), lane, trace, [&] { return call->must_stop(); });
    streamer.begin(lane, expected);
    try {
      made.output =
          take_out(*call, run_code(codes_.at(request.method), request.stack, gradients), inputs, boundary);
    } catch (const std::exception& error) {
      streamer.end(lane);
      if (scope.failure() && !call->overflowed()) {
        std::rethrow_exception(scope.failure());
      }
      throw;
    }
    executed = streamer.end(lane);
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
  note_peak();
  note_memory(request, made.memory, ended);
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
    note_sequence(request.method, request.shape, next);
  }
  if (!trace) {
    streamer.expect(lane, next);
  }
  return made;
}

/// Whether what the call writes in the module has to be kept from before: not where calls like it are known to fit.
bool Module::Impl::may_take_more(const Request& request) const {
  const std::lock_guard lock(mutex_);
  return program_.writes_state && !activations_.knows(request.shape);
}

void Module::Impl::note_memory(const Request& request, const CallMemory& memory, bool ended) {
  if (!device_.is_cuda()) {
    return;
  }
  const std::lock_guard lock(mutex_);
  const std::uint64_t before = activations_.largest() + state_;
  // What a call writes anew is there beside what it replaces.
  state_ = std::max(state_, 2 * engine_->lanes().state());
  repeated_ += memory.overflowed ? 1 : 0;
  if (ended) {
    activations_.note(request.shape, memory.bytes);
  } else {
    activations_.note_at_least(request.shape, memory.bytes);
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
void Module::Impl::keep_state(Lanes::Call& call) {
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
  const std::vector<at::Tensor> kept = call.keep(written);
  replace_tensors(program_.holders, [&](const at::Tensor& tensor) {
    const auto position = positions.find(tensor.unsafeGetTensorImpl());
    return position == positions.end() ? tensor : kept[position->second];
  });
}

/// Copies what must not leave the call: memory of its lane, of leases, and weights themselves. It may leave through
/// `inputs`, too: the containers among them belong to the caller, and the model may have put tensors into them.
c10::IValue Module::Impl::take_out(Lanes::Call& call, const c10::IValue& output, const std::vector<c10::IValue>& inputs,
                                   const GradientBoundary& boundary) {
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
  keep_state(call);
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
