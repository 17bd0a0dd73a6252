#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>

#include <functional>
#include <utility>
#include <vector>

#include <offload/graph/weights.h>

namespace offload {

/// The elements of a list or dict, in one of their own.
c10::IValue copy_of(const c10::IValue& container);

/// Puts the elements of `before` into `container`.
void refill(const c10::IValue& container, const c10::IValue& before);

/// The same tensors on other memory, where they share what they share now: `copy` is given the bytes that they span,
/// those of tensors that lie on one storage together, and returns as many on memory of their own.
std::vector<at::Tensor> copy_together(
    const std::vector<at::Tensor>& tensors,
    const std::function<std::vector<at::Tensor>(const std::vector<at::Tensor>& bytes)>& copy);

/// What calls may have written in some modules, to be put back: attributes, containers, and the bytes, geometry and
/// gradients of tensors that stand in them. Placeholders are no state. Calls must have ended on the device, or
/// restore() comes on the stream where they are made.
class StateSnapshot {
 public:
  /// `never_written` identifies tensors that no call writes.
  StateSnapshot(const Holders& holders, const std::function<bool(const at::Tensor&)>& never_written);
  void restore() const;

 private:
  struct Value {
    at::Tensor tensor; // as it stands in the module
    at::Tensor before; // its geometry then, on the same storage
    at::Tensor copy;   // the bytes that it spanned, or, where it is no range of bytes, its values
  };

  std::vector<std::pair<c10::IValue, std::vector<c10::IValue>>> slots_; // of each object
  std::vector<std::pair<c10::IValue, c10::IValue>> containers_;         // and what was in them
  std::vector<Value> values_;
  std::vector<std::pair<at::Tensor, at::Tensor>> gradients_; // of those that have some, or may get them
};

} // namespace offload
