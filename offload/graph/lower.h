#pragma once

#include <torch/csrc/jit/ir/ir.h>

#include <memory>
#include <vector>

#include <offload/graph/lowered_method.h>
#include <offload/graph/trace_weights.h>

namespace offload {

/// The steps of a method, and what must find room whatever the run picks: see Note [Alternatives] in weight_flow.h.
struct LoweredSteps {
  std::vector<LoweredStep> steps;
  std::vector<Choice> choices; ///< of nodes whose weights the run picks
};

/// Rewrites the readers of `trace`. Products of matrices (`aten::linear`, `matmul`, `mm`, `bmm`, `addmm`) and fused
/// encoder layers become the operators of the same name in `offload`. The table of `aten::embedding`, and of other
/// lookups of rows, comes from an `offload::rows`. Any other node gets its weights from an `offload::acquire` before
/// it. Weights for which `stays` is true are left as they are. All branches count; the steps are an estimate until a
/// call has shown its order.
LoweredSteps lower(torch::jit::Graph& graph, const WeightTrace& trace, const std::vector<bool>& stays);

/// A copy of a lowered graph for weights that are `resident` or not. Each product is annotated, attribute `placement`:
/// "resident" or "streamed". Nodes that read only resident weights are what they were before: such weights stand in
/// the module as ordinary tensors, and need no lease.
std::shared_ptr<torch::jit::Graph> place_weights(torch::jit::Graph& lowered, const std::vector<bool>& resident);

} // namespace offload
