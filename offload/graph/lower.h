#pragma once

#include <torch/csrc/jit/ir/ir.h>

#include <cstdint>
#include <string>
#include <vector>

#include <offload/graph/trace_weights.h>
#include <offload/plan/simulate.h>

namespace offload {

/// How a node of the lowered graph takes its weights.
enum class Taken {
  product, ///< inside an operator of ours with the name of the one it replaces, which gives the same bits
  leased,  ///< from an `offload::acquire` before it
  rows,    ///< it looks up rows, and may read them where they lie in host memory
};

const char* to_string(Taken taken);

/// A loop around a step.
struct Loop {
  const torch::jit::Node* node; ///< which one it is: the graph may be gone
  std::int64_t trips;           ///< 1 where it is not known
};

/// What takes weights in the lowered graph, in the static order of execution: a node, or a part of one that takes them
/// part by part. Where the run picks the weights, there is a step for each choice.
struct LoweredStep {
  Step weights;
  std::string op; ///< the operator that reads them, as in "aten::conv2d"
  double times;   ///< how often one call is expected to come here: trip counts where they are constant
  Taken taken;
  std::vector<Loop> loops = {}; ///< the outermost first
};

/// The steps of a method, and what must find room whatever the run picks.
struct LoweredSteps {
  std::vector<LoweredStep> steps;
  std::vector<Choice> choices; ///< of those of which it picks the weights
};

/// Rewrites the readers of `trace`: products of matrices (`aten::linear`, `matmul`, `mm`, `bmm`, `addmm`), and fused
/// encoder layers, become the operators of the same name in `offload`, the table of `aten::embedding` and other lookups
/// of rows comes from an `offload::rows`, and any other node gets its weights from an `offload::acquire` before it.
/// Weights for which `stays` is true are left as they are. Branches that are decided at run time all count; the steps
/// are an estimate until a call has shown its order.
LoweredSteps lower(torch::jit::Graph& graph, const WeightTrace& trace, const std::vector<bool>& stays);

/// A copy of a lowered graph for weights that are `resident` or not. Each product is annotated, attribute `placement`:
/// "resident" or "streamed". Nodes that read only resident weights are what they were before: such weights stand in
/// the module as ordinary tensors, and need no lease.
std::shared_ptr<torch::jit::Graph> place_weights(torch::jit::Graph& lowered, const std::vector<bool>& resident);

} // namespace offload
