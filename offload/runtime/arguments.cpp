#include <offload/runtime/arguments.h>

#include <c10/util/Exception.h>
#include <c10/util/hash.h>

#include <iterator>
#include <utility>

#include <offload/error.h>

namespace offload {

const LoweredMethod& find_method(const Program& program, const std::string& name) {
  const auto found = program.methods.find(name);
  if (found == program.methods.end()) {
    std::string names;
    for (const auto& [other, lowered] : program.methods) {
      names += (names.empty() ? "" : ", ") + other;
    }
    throw InputError("the module has no method '" + name + "'" + (names.empty() ? "" : ": it has " + names));
  }
  return found->second;
}

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

std::vector<c10::IValue> make_stack(const Program& program, const LoweredMethod& method, c10::Device device,
                                    std::vector<c10::IValue> inputs, const Kwargs& kwargs) {
  method.require_gradients();
  std::vector<c10::IValue> stack = {program.holders.front()};
  stack.insert(stack.end(), std::make_move_iterator(inputs.begin()), std::make_move_iterator(inputs.end()));
  try {
    method.schema.checkAndNormalizeInputs(stack, kwargs);
  } catch (const c10::Error& error) {
    throw InputError(error.what_without_backtrace());
  } catch (const std::exception& error) {
    throw InputError(error.what());
  }
  for (std::size_t i = 1; i < stack.size(); ++i) {
    check_device(stack[i], method.schema.arguments()[i].name(), device);
  }
  if (method.takes_constants) {
    stack.push_back(program.holders.back());
  }
  return stack;
}

} // namespace offload
