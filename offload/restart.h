#pragma once

#include <ATen/core/Generator.h>
#include <ATen/core/ivalue.h>

#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include <offload/state.h>

namespace offload {

/// What a call may write that outlives it, as it was before: so that a call that was stopped can be made again, unseen
/// by its caller. Containers among the arguments, random generators and the state of the module are put back; the
/// values of tensors among the arguments are not kept, but known to be as they were.
class Restart {
 public:
  /// `state` is null where the module writes none, or where what it wrote is not kept; `generators` are those that it
  /// draws from.
  Restart(const std::vector<c10::IValue>& inputs, const Holders* state, const std::vector<at::Generator>& generators);

  /// Throws Error when the call has written to one of its arguments: it can not be made again.
  void restore();

 private:
  std::vector<std::pair<at::Tensor, std::uint32_t>> versions_;  // of tensors among the arguments
  std::vector<std::pair<c10::IValue, c10::IValue>> containers_; // and a copy of what is in them
  std::vector<std::pair<at::Generator, at::Tensor>> generators_;
  std::optional<StateSnapshot> state_;
};

} // namespace offload
