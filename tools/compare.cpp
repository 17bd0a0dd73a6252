#include <tools/compare.h>

#include <ATen/core/Tensor.h>
#include <ATen/core/function.h>
#include <ATen/core/jit_type.h>

#include <bit>
#include <cstdint>
#include <cstring>
#include <sstream>

namespace offload::tools {

namespace {

/// The values that a tensor stands for, one after another in host memory.
at::Tensor dense_values(const at::Tensor& tensor) {
  at::Tensor values = tensor.detach().cpu();
  values = values.layout() == at::kStrided ? values : values.to_dense();
  values = values.is_quantized() ? values.dequantize() : values;
  return values.resolve_conj().resolve_neg().contiguous();
}

std::string tensor_difference(const at::Tensor& actual, const at::Tensor& expected, const std::string& where) {
  if (actual.defined() != expected.defined()) {
    return where + ": only one of them is defined";
  }
  if (!actual.defined()) {
    return "";
  }
  if (actual.scalar_type() != expected.scalar_type() || actual.sizes() != expected.sizes()) {
    std::stringstream text;
    text << where << ": " << actual.scalar_type() << actual.sizes() << " instead of " << expected.scalar_type()
         << expected.sizes();
    return text.str();
  }
  if (actual.layout() != expected.layout() || actual.is_quantized() != expected.is_quantized()) {
    return where + ": tensors of another kind";
  }
  const at::Tensor a = dense_values(actual);
  const at::Tensor b = dense_values(expected);
  const auto* x = static_cast<const char*>(a.const_data_ptr());
  const auto* y = static_cast<const char*>(b.const_data_ptr());
  if (a.nbytes() == 0 || std::memcmp(x, y, a.nbytes()) == 0) {
    return "";
  }
  std::int64_t differing = 0;
  std::int64_t first = -1;
  const std::size_t item = a.element_size();
  for (std::int64_t i = 0; i < a.numel(); ++i) {
    if (std::memcmp(x + i * item, y + i * item, item) != 0) {
      first = differing == 0 ? i : first;
      ++differing;
    }
  }
  std::stringstream text;
  text << where << ": " << differing << " of " << a.numel() << " elements differ, the first at " << first;
  return text.str();
}

std::string element_difference(c10::ArrayRef<c10::IValue> actual, c10::ArrayRef<c10::IValue> expected,
                               const std::string& where) {
  if (actual.size() != expected.size()) {
    return where + ": " + std::to_string(actual.size()) + " elements instead of " + std::to_string(expected.size());
  }
  for (std::size_t i = 0; i < actual.size(); ++i) {
    const std::string difference = first_difference(actual[i], expected[i], where + "[" + std::to_string(i) + "]");
    if (!difference.empty()) {
      return difference;
    }
  }
  return "";
}

/// What gives the state of an object of a class that is C++; null for one of TorchScript.
torch::jit::Function* state_of_custom_class(const c10::ivalue::Object& object) {
  const auto& slots = object.slots();
  return slots.size() == 1 && slots[0].isCapsule() ? object.type()->findMethod("__getstate__") : nullptr;
}

} // namespace

std::string first_difference(const c10::IValue& actual, const c10::IValue& expected, const std::string& where) {
  if (actual.isTensor() && expected.isTensor()) {
    return tensor_difference(actual.toTensor(), expected.toTensor(), where);
  }
  if (actual.isTuple() && expected.isTuple()) {
    return element_difference(actual.toTupleRef().elements(), expected.toTupleRef().elements(), where);
  }
  if (actual.isList() && expected.isList()) {
    return element_difference(actual.toListRef(), expected.toListRef(), where);
  }
  if (actual.isGenericDict() && expected.isGenericDict()) {
    std::vector<c10::IValue> values;
    std::vector<c10::IValue> others;
    for (const auto& entry : expected.toGenericDict()) {
      const auto same = actual.toGenericDict().find(entry.key());
      if (same == actual.toGenericDict().end()) {
        return where + ": a key is missing";
      }
      values.push_back(same->value());
      others.push_back(entry.value());
    }
    return actual.toGenericDict().size() == others.size() ? element_difference(values, others, where)
                                                          : where + ": there are keys too many";
  }
  if (actual.isObject() && expected.isObject()) {
    torch::jit::Function* state = state_of_custom_class(expected.toObjectRef());
    return state && *actual.type() == *expected.type()
               ? first_difference((*state)({actual}), (*state)({expected}), where)
               : element_difference(actual.toObjectRef().slots(), expected.toObjectRef().slots(), where);
  }
  if (actual.isDouble() && expected.isDouble()) { // bit by bit: NaN is what it is
    const auto a = std::bit_cast<std::uint64_t>(actual.toDouble());
    const auto b = std::bit_cast<std::uint64_t>(expected.toDouble());
    return a == b ? "" : where + ": values differ";
  }
  if (actual.isFuture() && expected.isFuture()) {
    return first_difference(actual.toFuture()->value(), expected.toFuture()->value(), where);
  }
  if (actual.tagKind() != expected.tagKind()) {
    return where + ": " + actual.tagKind() + " instead of " + expected.tagKind();
  }
  return actual == expected ? "" : where + ": values differ";
}

} // namespace offload::tools
