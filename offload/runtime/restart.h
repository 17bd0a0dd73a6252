#pragma once

#include <ATen/core/Generator.h>
#include <ATen/core/ivalue.h>

#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include <offload/runtime/state.h>

namespace offload {

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
  std::vector<std::pair<at::Tensor, std::uint32_t>> versions_;  // of tensors among the arguments
  std::vector<std::pair<at::Tensor, at::Tensor>> copies_;       // of those that have no version
  std::vector<std::pair<c10::IValue, c10::IValue>> containers_; // and what was in them
  std::vector<std::pair<at::Generator, at::Tensor>> generators_;
  std::optional<StateSnapshot> state_;
  bool has_objects_ = false; // among the arguments: nothing is known of what is in them
};

} // namespace offload
