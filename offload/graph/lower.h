#pragma once

#include <torch/csrc/jit/ir/ir.h>

#include <string>
#include <vector>

#include <offload/graph/trace_weights.h>

namespace offload {

/// A node of the lowered graph that takes weights, in the static order of execution.
struct LoweredStep {
  Step weights;
  std::string op; ///< the operator that reads them, as in "aten::conv2d"
  double times;   ///< how often one call is expected to come here: trip counts where they are constant
  bool rows_only; ///< it looks up rows, and may read them where they lie in host memory
};

/// Rewrites the readers of `trace`: `aten::linear` on weights becomes `offload::linear`, the table of `aten::embedding`
/// and other lookups of rows comes from an `offload::rows`, and any other node gets its weights from an
/// `offload::acquire` before it. Weights for which `stays` is true are left as they are. Branches that are decided at
/// run time all count; the steps are an estimate until a call has shown its order.
std::vector<LoweredStep> lower(torch::jit::Graph& graph, const WeightTrace& trace, const std::vector<bool>& stays);

/// A copy of a lowered graph for weights that are `resident` or not. Each linear is annotated, attribute `placement`:
/// "resident" or "streamed". Nodes that read only resident weights are what they were before: such weights stand in
/// the module as ordinary tensors, and need no lease.
std::shared_ptr<torch::jit::Graph> place_weights(torch::jit::Graph& lowered, const std::vector<bool>& resident);

} // namespace offload
