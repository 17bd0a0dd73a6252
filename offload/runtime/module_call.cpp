// How a module is called; see module_impl.h.

#include <c10/util/Exception.h>
#include <c10/util/hash.h>

#include <iterator>
#include <tuple>

#include <offload/runtime/call_scope.h>
#include <offload/runtime/module_impl.h>

namespace offload {

/// A call has its lane until it ends, and whoever wants to be alone waits for that.
void Module::Impl::require_no_call_around(const char* wanted) const {
  if (CallScope::is_within(this)) {
    throw Error(std::string(wanted) + " of a module from within a call of it would wait for that call for ever: " +
                "do it when the call has returned, or with another module");
  }
}

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
  require_no_call_around("a call");
  Request request{name, make_stack(method(name), std::move(inputs), kwargs), 0};
  request.shape = shape_of_call(name, request.stack);
  while (true) {
    if (auto output = call_in_turn(request)) {
      return std::move(*output);
    }
    refuse_again(request);
    if (auto output = call_exclusive(request)) {
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
      if (readiness_ == Readiness::placed && (!engine_->placed() || engine_->streamer().lost())) {
        readiness_ = Readiness::measured; // a call ran out of host memory: weights have to be placed anew
      }
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
      refuse(request, made);
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
std::optional<c10::IValue> Module::Impl::call_exclusive(Request& request) {
  const ExclusiveVisit alone(*gate_);
  if (readiness_ == Readiness::measured) {
    try {
      replan();
    } catch (const ArchiveError&) {
      if (!engine_->placed() || engine_->streamer().lost()) {
        throw;
      }
      const std::lock_guard lock(mutex_);
      readiness_ = Readiness::placed; // what is placed goes on, since nothing else can be
      planned_for_ = activations_.largest();
    }
    return std::nullopt;
  }
  if (readiness_ == Readiness::placed && gate_->room() > request.too_little) {
    return std::nullopt;
  }
  engine_->check_file(); // what is placed for other calls stays, then
  auto before = std::make_tuple(activations_, measured_, planned_method_);
  c10::IValue output;
  try {
    output = measure(request);
    require_minimum(vram_);
  } catch (...) {
    const std::lock_guard lock(mutex_);
    std::tie(activations_, measured_, planned_method_) = std::move(before); // allocates nothing
    activations_.remove(request.shape);
    placement_.reset();
    readiness_ = measured_.empty() ? Readiness::unknown : Readiness::measured;
    throw;
  }
  try {
    replan();
  } catch (const std::exception&) {
    // The output is right, and state was written: the next call tries again, and tells.
  }
  return output;
}

} // namespace offload
