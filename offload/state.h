#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>

#include <utility>
#include <vector>

#include <offload/graph/weights.h>

namespace offload {

/// What calls may have written in some modules, to be put back: attributes, and the values and gradients of tensors
/// that stand in them. Placeholders are no state. Calls must have ended on the device.
class StateSnapshot {
 public:
  explicit StateSnapshot(const Holders& holders);
  void restore() const;

 private:
  std::vector<std::pair<c10::IValue, std::vector<c10::IValue>>> slots_; // of each object
  std::vector<std::pair<at::Tensor, at::Tensor>> values_;               // a tensor of the module, and a copy
  std::vector<std::pair<at::Tensor, at::Tensor>> gradients_;            // of those that have some, or may get them
};

} // namespace offload
