#pragma once

#include <torch/csrc/jit/ir/ir.h>

#include <map>
#include <string>
#include <vector>

#include <offload/graph/attributes.h>
#include <offload/graph/weight_flow.h>
#include <offload/graph/weights.h>

namespace offload {

/// A node that reads the bytes of weights, and through which of its inputs: see Note [Alternatives] in weight_flow.h.
struct Reader {
  struct Input {
    std::size_t position;
    Alternatives alternatives;
    std::size_t at_once; ///< the most weights that it carries
  };
  torch::jit::Node* node;
  std::vector<Input> inputs; ///< in the order of their positions
  Alternatives alternatives; ///< through all inputs
};

/// How the weights of a module travel through a graph.
///
/// A weight is read where its bytes are needed. Containers, views and branches only pass it on: a view of a placeholder
/// is a placeholder. Nodes that ask for nothing but sizes, dtype or device read nothing.
struct WeightTrace {
  std::vector<Reader> readers; ///< in the order of the nodes

  /// Weights that must be resident, and why: written, rebound, or handed to something that cannot be seen into.
  std::map<WeightId, std::string> resident_because;

  /// True when a call changes attributes of the module or of what holds its constants, so that the next call may give
  /// something else.
  bool writes_state = false;
};

/// `graph` is prepared: its first input is the module. `written` are the attributes that methods set. Nothing is
/// changed.
WeightTrace trace_weights(torch::jit::Graph& graph, const Holders& holders, const AttributeNames& written,
                          const ModuleWeights& weights);

} // namespace offload
