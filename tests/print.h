#pragma once

#include <ATen/core/ivalue.h>
#include <ATen/ops/arange.h>

#include <cstdint>
#include <vector>

namespace offload::test {

/// What tells values apart in a few numbers, for who has no room to keep them.
using Print = std::vector<std::int64_t>;

/// Two sums over all bits of all tensors, one of them weighted by position.
inline void print_into(const c10::IValue& value, Print& print) {
  if (value.isTensor()) {
    const at::Tensor& tensor = value.toTensor();
    print.push_back(tensor.numel());
    if (tensor.numel() > 0) {
      const at::Tensor values = tensor.detach().contiguous().flatten();
      const at::Tensor bits = values.nbytes() % 8 == 0 ? values.view(at::kLong) : values.view(at::kByte).to(at::kLong);
      print.push_back(bits.sum().item<std::int64_t>());
      print.push_back(bits.mul(at::arange(1, bits.numel() + 1, bits.options())).sum().item<std::int64_t>());
    }
  } else if (value.isTuple()) {
    for (const c10::IValue& element : value.toTupleRef().elements()) {
      print_into(element, print);
    }
  } else if (value.isList()) {
    for (const c10::IValue& element : value.toListRef()) {
      print_into(element, print);
    }
  } else if (value.isGenericDict()) {
    for (const auto& entry : value.toGenericDict()) {
      print_into(entry.value(), print);
    }
  }
}

inline Print print_of(const c10::IValue& value) {
  Print print;
  print_into(value, print);
  return print;
}

} // namespace offload::test
