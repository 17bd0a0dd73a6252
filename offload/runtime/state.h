#pragma once

#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>

#include <cstdint>
#include <functional>
#include <optional>
#include <utility>
#include <vector>

#include <offload/graph/weights.h>

namespace offload {

/// The bytes from `begin` to `end` (exclusive) of a storage, where they lie.
at::Tensor bytes_tensor(const c10::Storage& storage, std::uint64_t begin, std::uint64_t end);

/// The same tensors on other memory, where they share what they share now: `copy` is given the bytes that they span,
/// those of tensors that lie on one storage together, and returns as many on memory of their own.
std::vector<at::Tensor> copy_together(
    const std::vector<at::Tensor>& tensors,
    const std::function<std::vector<at::Tensor>(const std::vector<at::Tensor>& bytes)>& copy);

/// Lists and dicts, and what was in them.
using Containers = std::vector<std::pair<c10::IValue, c10::IValue>>;

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
  Containers containers_;
  std::vector<Value> values_;
  std::vector<std::pair<at::Tensor, at::Tensor>> gradients_; // of those that have some, or may get them
};

/// What a call may write that outlives it, as it was before: so that a call that was stopped can be made again, unseen
/// by its caller. Containers among the arguments, random generators and the state of the module are put back. Tensors
/// among the arguments are not: their versions show whether they are as they were. Only those of InferenceMode, which
/// have no versions, are copied and put back. Others who draw from a generator meanwhile may get some numbers twice.
/// What a call within the call has put into another module is not put back.
class Restart {
 public:
  Restart(const std::vector<c10::IValue>& arguments, std::optional<StateSnapshot> state,
          const std::vector<at::Generator>& generators);

  /// Throws Error, after all else has been put back, when the call may have written to one of its arguments: then it
  /// can not be made again.
  void restore();

 private:
  std::vector<std::pair<at::Tensor, std::uint32_t>> versions_; // of tensors among the arguments
  std::vector<std::pair<at::Tensor, at::Tensor>> copies_;      // of those that have no version
  Containers containers_;
  std::vector<std::pair<at::Generator, at::Tensor>> generators_;
  std::optional<StateSnapshot> state_;
  bool has_objects_ = false; // among the arguments: nothing is known of what is in them
};

} // namespace offload
