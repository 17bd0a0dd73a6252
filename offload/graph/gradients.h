#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>
#include <torch/csrc/jit/ir/ir.h>

#include <unordered_set>
#include <vector>

namespace offload {

/// Calls torch.autograd.grad, or backward().
bool differentiates(const torch::jit::Node* node);

/// Whether a graph differentiates: never, in a branch or a loop that may not be taken, or whenever it runs.
enum class Differentiates { never, perhaps, always };

Differentiates differentiates(torch::jit::Graph& graph);

/// Turns gradients on or off, or may do so in a class of the model's own.
bool sets_gradients(torch::jit::Graph& graph);

/// May turn gradients on where they were off.
bool enables_gradients(torch::jit::Graph& graph);

/// What leaves a call that ran with gradients. A tensor that was computed holds the graph that computed it, and with it
/// the weights that were saved for backward: their leases would never end. What the caller gave keeps his graph.
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
