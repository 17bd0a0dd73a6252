#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>

#include <unordered_set>
#include <vector>

namespace offload {

/// What leaves a call that ran with gradients. A tensor that was computed holds the graph that computed it, and with it
/// the weights that were saved for backward: their leases would never end. Tensors that the caller gave keep their
/// graph.
class GradientBoundary {
 public:
  /// For a call without gradients nothing has to be cut.
  GradientBoundary() = default;

  explicit GradientBoundary(const std::vector<c10::IValue>& inputs);

  bool cuts() const { return cuts_; }

  /// The tensor without its graph.
  at::Tensor detach(const at::Tensor& tensor) const;

 private:
  bool cuts_ = false;
  std::vector<at::Tensor> given_; // kept, so that no other gets the address of one
  std::unordered_set<const void*> addresses_;
};

} // namespace offload
