#include <offload/graph/lower.h>

#include <torch/csrc/jit/ir/constants.h>

#include <algorithm>
#include <optional>
#include <unordered_map>

#include <offload/graph/attributes.h>
#include <offload/plan/placement.h>

namespace offload {

using torch::jit::Block;
using torch::jit::Graph;
using torch::jit::Node;
using torch::jit::Value;
namespace prim = torch::jit::prim;
namespace aten = torch::jit::aten;

namespace {

const c10::Symbol kLinear = c10::Symbol::fromQualString("offload::linear");
const c10::Symbol kAcquire = c10::Symbol::fromQualString("offload::acquire");
const c10::Symbol kAcquireOptional = c10::Symbol::fromQualString("offload::acquire_optional");
const c10::Symbol kRows = c10::Symbol::fromQualString("offload::rows");
const c10::Symbol kPlacement = c10::Symbol::attr("placement");
const c10::Symbol kWeights = c10::Symbol::attr("weights"); // of our nodes: the weights that they may lease

/// The trip counts of the loops around a node, as far as they are constants.
double times_executed(const Node* node) {
  double times = 1;
  for (const Block* block = node->owningBlock(); block && block->owningNode();
       block = block->owningNode()->owningBlock()) {
    const Node* owner = block->owningNode();
    if (owner->kind() == prim::Loop) {
      const auto trips = torch::jit::toIValue(owner->input(0));
      if (trips && trips->isInt() && trips->toInt() > 0 && trips->toInt() < 1000000) {
        times *= static_cast<double>(trips->toInt());
      }
    }
  }
  return times;
}

void note_weights(Node* node, const Step& weights) {
  node->is_(kWeights, std::vector<std::int64_t>(weights.begin(), weights.end()));
}

void lower_linear(Graph& graph, Node* node, const Step& weights) {
  const torch::jit::WithInsertPoint at(node);
  Node* linear = graph.insertNode(graph.create(kLinear, node->inputs(), 1));
  note_weights(linear, weights);
  linear->setSourceRange(node->sourceRange());
  linear->output()->copyMetadata(node->output());
  node->output()->replaceAllUsesWith(linear->output());
  node->destroy();
}

/// Puts `kind`(input) in the place of one input of a node.
void wrap_input(Graph& graph, Node* node, std::size_t position, c10::Symbol kind, const Step& weights) {
  const torch::jit::WithInsertPoint at(node);
  Value* value = node->input(position);
  Node* wrapper = graph.insertNode(graph.create(kind, {value}, 1));
  wrapper->setSourceRange(node->sourceRange());
  note_weights(wrapper, weights);
  wrapper->output()->setType(value->type());
  node->replaceInput(position, wrapper->output());
}

/// Of its first input it reads a few rows, wherever that lies.
bool looks_up_rows(const Node* node) {
  if (node->kind() == aten::index_select) {
    const auto dim = torch::jit::toIValue(node->input(1));
    return dim && dim->isInt() && dim->toInt() == 0;
  }
  return node->kind() == aten::embedding || node->kind() == aten::embedding_bag;
}

/// One acquire for all weights of a node that are single tensors, and one for each that is a list already, or may be
/// None.
void insert_acquires(Graph& graph, Node* node, const std::vector<std::size_t>& positions, const Step& weights) {
  std::vector<std::size_t> tensors;
  std::vector<Value*> values;
  for (const std::size_t position : positions) {
    Value* value = node->input(position);
    if (value->type()->kind() == c10::TypeKind::ListType) {
      wrap_input(graph, node, position, kAcquire, weights);
    } else if (value->type()->kind() == c10::TypeKind::OptionalType) {
      wrap_input(graph, node, position, kAcquireOptional, weights);
    } else {
      tensors.push_back(position);
      values.push_back(value);
    }
  }
  if (tensors.empty()) {
    return;
  }
  const torch::jit::WithInsertPoint at(node);
  Node* list = graph.insertNode(graph.createList(c10::TensorType::get(), values));
  Node* acquire = graph.insertNode(graph.create(kAcquire, {list->output()}, 1));
  acquire->setSourceRange(node->sourceRange());
  note_weights(acquire, weights);
  acquire->output()->setType(c10::ListType::ofTensors());
  Node* unpack = graph.insertNode(graph.create(prim::ListUnpack, {acquire->output()}, 0));
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    Value* leased = unpack->addOutput();
    leased->setType(values[i]->type());
    node->replaceInput(tensors[i], leased);
  }
}

} // namespace

std::vector<LoweredStep> lower(Graph& graph, const WeightTrace& trace, const std::vector<bool>& stays) {
  std::vector<LoweredStep> steps;
  for (const Reader& reader : trace.readers) {
    LoweredStep step{{}, reader.node->kind().toQualString(), times_executed(reader.node), false};
    std::vector<std::size_t> positions;
    for (const Reader::Input& input : reader.inputs) {
      const std::size_t before = step.weights.size();
      for (const WeightId weight : input.weights) {
        if (!stays[weight] && std::find(step.weights.begin(), step.weights.end(), weight) == step.weights.end()) {
          step.weights.push_back(weight);
        }
      }
      const bool planned =
          std::any_of(input.weights.begin(), input.weights.end(), [&](WeightId w) { return !stays[w]; });
      if (planned || step.weights.size() > before) {
        positions.push_back(input.position);
      }
    }
    Node* node = reader.node;
    if (positions.empty()) {
      if (node->kind() == aten::linear) {
        node->s_(kPlacement, to_string(Mode::resident));
      }
      continue;
    }
    const bool weights_only = positions.front() > 0;
    if (node->kind() == aten::linear && weights_only) {
      lower_linear(graph, node, step.weights);
    } else if (looks_up_rows(node) && positions == std::vector<std::size_t>{0}) {
      wrap_input(graph, node, 0, kRows, step.weights);
      step.rows_only = true;
    } else {
      insert_acquires(graph, node, positions, step.weights);
    }
    steps.push_back(std::move(step));
  }
  graph.lint();
  return steps;
}

namespace {

/// acquire([a, b]) unpacked again is a and b.
void bypass_list(Node* acquire) {
  Node* list = acquire->input()->node();
  const bool ours = list->kind() == prim::ListConstruct && list->output()->uses().size() == 1 &&
                    acquire->output()->uses().size() == 1 &&
                    acquire->output()->uses()[0].user->kind() == prim::ListUnpack;
  if (!ours) {
    acquire->output()->replaceAllUsesWith(acquire->input());
    acquire->destroy();
    return;
  }
  Node* unpack = acquire->output()->uses()[0].user;
  for (std::size_t i = 0; i < unpack->outputs().size(); ++i) {
    unpack->output(i)->replaceAllUsesWith(list->input(i));
  }
  unpack->destroy();
  acquire->destroy();
  list->destroy();
}

} // namespace

std::shared_ptr<Graph> place_weights(Graph& lowered, const std::vector<bool>& resident) {
  auto graph = lowered.copy();
  std::vector<Node*> raised;
  for_each_node(graph->block(), [&](Node* node) {
    if (!node->hasAttribute(kWeights)) {
      return;
    }
    const auto& weights = node->is(kWeights);
    const auto is_resident = [&](std::int64_t weight) { return resident[weight]; };
    if (node->kind() == kLinear) {
      node->s_(kPlacement, to_string(is_resident(weights.front()) ? Mode::resident : Mode::streamed));
    }
    if (std::all_of(weights.begin(), weights.end(), is_resident)) {
      raised.push_back(node);
    }
  });
  for (Node* node : raised) {
    if (node->kind() == kLinear) {
      const torch::jit::WithInsertPoint at(node);
      Node* linear = graph->insertNode(graph->create(aten::linear, node->inputs(), 1));
      linear->copyMetadata(node);
      linear->s_(kPlacement, node->s(kPlacement));
      linear->output()->copyMetadata(node->output());
      node->output()->replaceAllUsesWith(linear->output());
      node->destroy();
    } else if (node->kind() == kAcquire) {
      bypass_list(node);
    } else {
      node->output()->replaceAllUsesWith(node->input());
      node->destroy();
    }
  }
  graph->lint();
  return graph;
}

} // namespace offload
