#include <offload/runtime/arguments.h>

#include <c10/util/Exception.h>
#include <c10/util/hash.h>

#include <algorithm>
#include <iterator>

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

/// Of a tuple or a list, and the values of a dict.
template <typename Visit>
void visit_elements(const c10::IValue& value, Visit visit) {
  const c10::ArrayRef<c10::IValue> elements = value.isTuple()  ? value.toTupleRef().elements().asArrayRef()
                                              : value.isList() ? value.toListRef()
                                                               : c10::ArrayRef<c10::IValue>();
  std::for_each(elements.begin(), elements.end(), visit);
  if (value.isGenericDict()) {
    for (const auto& entry : value.toGenericDict()) {
      visit(entry.value());
    }
  }
}

/// Tensors on another device would fail deep in the model; here the argument can be named.
void check_device(const c10::IValue& value, const std::string& argument, c10::Device device) {
  if (value.isTensor() && value.toTensor().defined()) {
    const at::Tensor& tensor = value.toTensor();
    const bool scalar_on_host = tensor.dim() == 0 && tensor.device().is_cpu();
    if (tensor.device() != device && !scalar_on_host) {
      throw InputError("argument '" + argument + "' is on " + tensor.device().str() + ", the module runs on " +
                       device.str() + ": move it there with to()");
    }
  }
  visit_elements(value, [&](const c10::IValue& element) { check_device(element, argument, device); });
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
  }
  visit_elements(value, [&](const c10::IValue& element) { add(shape_of(element)); });
  return shape;
}

} // namespace

Request make_request(const Program& program, c10::Device device, const std::string& method,
                     std::vector<c10::IValue> inputs, const Kwargs& kwargs) {
  const LoweredMethod& lowered = find_method(program, method);
  lowered.require_gradients();
  Request request{method, {program.holders.front()}, std::hash<std::string>()(method)};
  std::vector<c10::IValue>& stack = request.stack;
  stack.insert(stack.end(), std::make_move_iterator(inputs.begin()), std::make_move_iterator(inputs.end()));
  try {
    lowered.schema.checkAndNormalizeInputs(stack, kwargs);
  } catch (const c10::Error& error) {
    throw InputError(error.what_without_backtrace());
  } catch (const std::exception& error) {
    throw InputError(error.what());
  }
  for (std::size_t i = 1; i < stack.size(); ++i) {
    check_device(stack[i], lowered.schema.arguments()[i].name(), device);
    request.shape = c10::hash_combine(request.shape, stack[i].isObject() ? 0 : shape_of(stack[i]));
  }
  if (lowered.takes_constants) {
    stack.push_back(program.holders.back());
  }
  return request;
}

} // namespace offload
