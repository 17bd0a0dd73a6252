#include <offload/graph/lower.h>

#include <torch/csrc/jit/ir/constants.h>

#include <algorithm>
#include <iterator>
#include <numeric>
#include <set>

#include <offload/graph/attributes.h>
#include <offload/graph/operators.h>
#include <offload/placement.h>

namespace offload {

using torch::jit::Block;
using torch::jit::Graph;
using torch::jit::Node;
using torch::jit::Value;
namespace prim = torch::jit::prim;

namespace {

const c10::Symbol kAcquire = c10::Symbol::fromQualString("offload::acquire");
const c10::Symbol kAcquireOptional = c10::Symbol::fromQualString("offload::acquire_optional");
const c10::Symbol kAcquireOptionals = c10::Symbol::fromQualString("offload::acquire_optionals");
const c10::Symbol kOwn = c10::Symbol::fromQualString("offload::own");
const c10::Symbol kOwnAll = c10::Symbol::fromQualString("offload::own_all");
const c10::Symbol kRows = c10::Symbol::fromQualString("offload::rows");
const c10::Symbol kPlacement = c10::Symbol::attr("placement");
const c10::Symbol kWeights = c10::Symbol::attr("weights"); // of our nodes: the weights that they may lease

struct Product {
  c10::Symbol plain;
  c10::Symbol ours;                                 // the same operator, with the same schema, that leases its inputs
  std::vector<std::vector<std::size_t>> parts = {}; // positions of inputs that are leased together; empty: all are
};

const std::vector<Product> kProducts = [] {
  std::vector<Product> list;
  for (const char* name : {"linear", "matmul", "mm", "bmm", "addmm"}) {
    list.push_back({c10::Symbol::fromQualString(std::string("aten::") + name),
                    c10::Symbol::fromQualString(std::string("offload::") + name)});
  }
  // Attention and the first norm, the two products, the second norm: as ops/encoder_layer.cpp has them.
  list.push_back({c10::Symbol::fromQualString("aten::_transformer_encoder_layer_fwd"),
                  c10::Symbol::fromQualString("offload::_transformer_encoder_layer_fwd"),
                  {{0, 3, 4, 5, 6, 10, 11, 18}, {14, 15}, {16, 17}, {12, 13}}});
  return list;
}();

/// Null when `node` is no product of matrices, plain or ours.
const Product* find_product(const Node* node) {
  const auto found = std::find_if(kProducts.begin(), kProducts.end(), [&](const Product& product) {
    return product.plain == node->kind() || product.ours == node->kind();
  });
  return found == kProducts.end() ? nullptr : &*found;
}

/// What `reader` may take at once, whatever the run picks: for a product that takes part by part, for each part.
std::vector<Choice> choices_of(const Product* product, const Reader& reader, const std::vector<bool>& stays) {
  std::vector<std::vector<std::size_t>> parts = product ? product->parts : std::vector<std::vector<std::size_t>>();
  if (parts.empty()) {
    parts.emplace_back();
    for (const Reader::Input& input : reader.inputs) {
      parts.back().push_back(input.position);
    }
  }
  std::vector<Choice> choices;
  for (const std::vector<std::size_t>& positions : parts) {
    std::set<WeightId> all;
    std::size_t at_once = 0;
    for (const Reader::Input& input : reader.inputs) {
      if (std::find(positions.begin(), positions.end(), input.position) != positions.end()) {
        std::set<WeightId> leased;
        for (const Step& alternative : input.alternatives) {
          std::copy_if(alternative.begin(), alternative.end(), std::inserter(leased, leased.end()),
                       [&](WeightId w) { return !stays[w]; });
        }
        at_once += std::min(input.at_once, leased.size());
        all.merge(leased);
      }
    }
    if (!all.empty()) {
      choices.push_back({Step(all.begin(), all.end()), std::min(at_once, all.size())});
    }
  }
  return choices;
}

/// Divides the weights that `reader` takes at once into those that it takes one after another.
std::vector<Step> parts_of(const Product& product, const Reader& reader, const Step& weights) {
  if (product.parts.empty()) {
    return {weights};
  }
  std::vector<Step> parts;
  for (const std::vector<std::size_t>& positions : product.parts) {
    std::set<WeightId> part;
    for (const Reader::Input& input : reader.inputs) {
      if (std::find(positions.begin(), positions.end(), input.position) != positions.end()) {
        for (const Step& alternative : input.alternatives) {
          part.insert(alternative.begin(), alternative.end());
        }
      }
    }
    Step taken;
    std::copy_if(weights.begin(), weights.end(), std::back_inserter(taken),
                 [&](WeightId weight) { return part.count(weight) > 0; });
    if (!taken.empty()) {
      parts.push_back(std::move(taken));
    }
  }
  return parts;
}

/// The loops around a node, with their trip counts as far as they are constants.
std::vector<Loop> loops_around(const Node* node) {
  std::vector<Loop> loops;
  for (const Block* block = node->owningBlock(); block && block->owningNode();
       block = block->owningNode()->owningBlock()) {
    const Node* owner = block->owningNode();
    if (owner->kind() == prim::Loop) {
      const auto trips = torch::jit::toIValue(owner->input(0));
      const bool is_known = trips && trips->isInt() && trips->toInt() > 0 && trips->toInt() < 1000000;
      loops.push_back({owner, is_known ? trips->toInt() : 1});
    }
  }
  std::reverse(loops.begin(), loops.end());
  return loops;
}

void note_weights(Node* node, const Step& weights) {
  node->is_(kWeights, std::vector<std::int64_t>(weights.begin(), weights.end()));
}

/// The same node as another operator, in its place.
Node* replace_kind(Graph& graph, Node* node, c10::Symbol kind) {
  const torch::jit::WithInsertPoint at(node);
  Node* replacement = graph.insertNode(graph.create(kind, node->inputs(), node->outputs().size()));
  replacement->copyMetadata(node);
  for (std::size_t i = 0; i < node->outputs().size(); ++i) {
    replacement->output(i)->copyMetadata(node->output(i));
  }
  node->replaceAllUsesWith(replacement);
  node->destroy();
  return replacement;
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

void lower_lookup(Graph& graph, Node* node, Value* indices, const Step& weights) {
  wrap_input(graph, node, 0, kRows, weights);
  node->input(0)->node()->addInput(indices);
}

/// A lease ends with the node that needed it.
void own_outputs(Graph& graph, Node* node, const Step& weights) {
  const torch::jit::WithInsertPoint at(node->next());
  for (Value* output : node->outputs()) {
    const bool list = output->type()->isSubtypeOf(*c10::ListType::ofTensors());
    if (!list && output->type()->kind() != c10::TypeKind::TensorType) {
      continue;
    }
    Node* own = graph.create(list ? kOwnAll : kOwn, {output}, 1);
    graph.insertNode(own);
    own->setSourceRange(node->sourceRange());
    note_weights(own, weights);
    own->output()->copyMetadata(output);
    output->replaceAllUsesAfterNodeWith(own, own->output());
  }
}

/// One acquire for all weights of a node that are single tensors, and one for each that is a list already, or may be
/// None.
void insert_acquires(Graph& graph, Node* node, const std::vector<std::size_t>& positions, const Step& weights) {
  std::vector<std::size_t> tensors;
  std::vector<Value*> values;
  for (const std::size_t position : positions) {
    Value* value = node->input(position);
    if (const auto list = value->type()->cast<c10::ListType>()) {
      const bool optionals = list->getElementType()->kind() == c10::TypeKind::OptionalType;
      wrap_input(graph, node, position, optionals ? kAcquireOptionals : kAcquire, weights);
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

LoweredSteps lower(Graph& graph, const WeightTrace& trace, const std::vector<bool>& stays) {
  LoweredSteps lowered;
  const auto planned_of = [&](const Step& weights) {
    Step planned;
    std::copy_if(weights.begin(), weights.end(), std::back_inserter(planned), [&](WeightId w) { return !stays[w]; });
    return planned;
  };
  for (const Reader& reader : trace.readers) {
    std::vector<std::size_t> positions; // of inputs that may carry planned weights
    for (const Reader::Input& input : reader.inputs) {
      if (std::any_of(input.alternatives.begin(), input.alternatives.end(),
                      [&](const Step& weights) { return !planned_of(weights).empty(); })) {
        positions.push_back(input.position);
      }
    }
    Node* node = reader.node;
    const Product* product = find_product(node);
    if (positions.empty()) {
      if (product) {
        node->s_(kPlacement, to_string(Mode::resident));
      }
      continue;
    }
    Alternatives alternatives; // without what stays
    std::set<WeightId> all;
    for (const Step& weights : reader.alternatives) {
      const Step planned = planned_of(weights);
      all.insert(planned.begin(), planned.end());
      if (!planned.empty()) {
        alternatives.insert(planned);
      }
    }
    Value* indices = indices_of_lookup(node);
    const bool looks_up = indices && positions == std::vector<std::size_t>{0};
    const Taken taken = product ? Taken::product : looks_up ? Taken::rows : Taken::leased;
    const std::vector<Loop> loops = loops_around(node);
    const double trips = std::accumulate(loops.begin(), loops.end(), 1.0, [](double so_far, const Loop& loop) {
      return so_far * static_cast<double>(loop.trips);
    });
    const double times = trips / static_cast<double>(alternatives.size());
    for (const Step& weights : alternatives) {
      for (Step& part : product ? parts_of(*product, reader, weights) : std::vector<Step>{weights}) {
        lowered.steps.push_back({std::move(part), node->kind().toQualString(), std::max(1.0, times), taken, loops});
      }
    }
    if (alternatives.size() > 1 && !looks_up) {
      const std::vector<Choice> choices = choices_of(product, reader, stays);
      lowered.choices.insert(lowered.choices.end(), choices.begin(), choices.end());
    }
    const Step weights(all.begin(), all.end());
    if (product) {
      note_weights(replace_kind(graph, node, product->ours), weights);
    } else if (looks_up) {
      lower_lookup(graph, node, indices, weights);
    } else {
      insert_acquires(graph, node, positions, weights);
      if (std::any_of(positions.begin(), positions.end(), [&](std::size_t i) { return may_alias_output(node, i); })) {
        own_outputs(graph, node, weights);
      }
    }
  }
  graph.lint();
  return lowered;
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
    const bool all = std::all_of(weights.begin(), weights.end(), [&](std::int64_t weight) { return resident[weight]; });
    if (find_product(node)) {
      node->s_(kPlacement, to_string(all ? Mode::resident : Mode::streamed));
    }
    if (all) {
      raised.push_back(node);
    }
  });
  for (Node* node : raised) {
    if (const Product* product = find_product(node)) {
      const std::string placement = node->s(kPlacement);
      replace_kind(*graph, node, product->plain)->s_(kPlacement, placement);
    } else if (node->kind() == kAcquire) {
      bypass_list(node);
    } else {
      node->output()->replaceAllUsesWith(node->input(0));
      node->destroy();
    }
  }
  graph->lint();
  return graph;
}

} // namespace offload
