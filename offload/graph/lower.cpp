#include <offload/graph/lower.h>

#include <torch/csrc/jit/ir/constants.h>

#include <algorithm>
#include <iterator>
#include <set>
#include <string>
#include <utility>

#include <offload/graph/attributes.h>
#include <offload/graph/operators.h>
#include <offload/placement.h>

namespace offload {

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

using Positions = std::set<std::size_t>; // of inputs

struct Product {
  c10::Symbol plain;
  c10::Symbol ours;             // the same operator, with the same schema, that leases its inputs
  std::vector<Positions> parts; // that are leased together; empty: all are
};

Product make_product(const std::string& name, std::vector<Positions> parts = {}) {
  return {c10::Symbol::fromQualString("aten::" + name), c10::Symbol::fromQualString("offload::" + name),
          std::move(parts)};
}

const std::vector<Product> kProducts = {
    make_product("linear"), make_product("matmul"), make_product("mm"), make_product("bmm"), make_product("addmm"),
    // Attention and the first norm, the two products, the second norm: as ops/encoder_layer.cpp has them.
    make_product("_transformer_encoder_layer_fwd", {{0, 3, 4, 5, 6, 10, 11, 18}, {14, 15}, {16, 17}, {12, 13}})};

/// Null when `node` is no product of matrices, plain or ours.
const Product* find_product(const Node* node) {
  const auto found = std::find_if(kProducts.begin(), kProducts.end(), [&](const Product& product) {
    return product.plain == node->kind() || product.ours == node->kind();
  });
  return found == kProducts.end() ? nullptr : &*found;
}

/// What is left of `reader` without the weights that stay.
Reader without(const Reader& reader, const std::vector<bool>& stays) {
  const auto planned_of = [&](const Alternatives& alternatives) {
    Alternatives planned;
    for (Step weights : alternatives) {
      std::erase_if(weights, [&](WeightId weight) { return stays[weight]; });
      if (!weights.empty()) {
        planned.insert(std::move(weights));
      }
    }
    return planned;
  };
  Reader left{reader.node, {}, planned_of(reader.alternatives)};
  for (const Reader::Input& input : reader.inputs) {
    Alternatives planned = planned_of(input.alternatives);
    if (!planned.empty()) {
      const std::size_t most = united(planned).size();
      left.inputs.push_back({input.position, std::move(planned), std::min(input.at_once, most)});
    }
  }
  return left;
}

/// What `reader` takes at once, whatever the run picks: all, or, of a product that takes part by part, each part.
std::vector<Choice> parts_of(const Product* product, const Reader& reader) {
  auto parts = product ? product->parts : std::vector<Positions>();
  if (parts.empty()) {
    parts.emplace_back();
    for (const Reader::Input& input : reader.inputs) {
      parts.back().insert(input.position);
    }
  }
  std::vector<Choice> choices;
  for (const Positions& positions : parts) {
    WeightSet all;
    std::size_t at_once = 0;
    for (const Reader::Input& input : reader.inputs) {
      if (positions.count(input.position) > 0) {
        all.merge(united(input.alternatives));
        at_once += input.at_once;
      }
    }
    if (!all.empty()) {
      choices.push_back({Step(all.begin(), all.end()), std::min(at_once, all.size())});
    }
  }
  return choices;
}

/// The loops around a node, with their trip counts as far as they are constants.
std::vector<Loop> loops_around(const Node* node) {
  std::vector<Loop> loops;
  for (const Node* owner = node->owningBlock()->owningNode(); owner; owner = owner->owningBlock()->owningNode()) {
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
Node* replace_kind(Node* node, c10::Symbol kind) {
  const torch::jit::WithInsertPoint at(node);
  Graph& graph = *node->owningGraph();
  Node* replacement = graph.insertNode(graph.create(kind, node->inputs(), node->outputs().size()));
  replacement->copyMetadata(node);
  for (std::size_t i = 0; i < node->outputs().size(); ++i) {
    replacement->output(i)->copyMetadata(node->output(i));
  }
  node->replaceAllUsesWith(replacement);
  node->destroy();
  return replacement;
}

/// Inserts `kind`(value) of the same type, for `node`.
Node* insert_for(Node* node, c10::Symbol kind, Value* value, const Step& weights) {
  Graph& graph = *node->owningGraph();
  Node* inserted = graph.insertNode(graph.create(kind, {value}, 1));
  inserted->setSourceRange(node->sourceRange());
  note_weights(inserted, weights);
  inserted->output()->setType(value->type());
  return inserted;
}

/// Puts `kind`(input) in the place of one input of a node.
Node* wrap_input(Node* node, std::size_t position, c10::Symbol kind, const Step& weights) {
  const torch::jit::WithInsertPoint at(node);
  Node* wrapper = insert_for(node, kind, node->input(position), weights);
  node->replaceInput(position, wrapper->output());
  return wrapper;
}

/// A lease ends with the node that needed it.
void own_outputs(Node* node, const Step& weights) {
  const torch::jit::WithInsertPoint at(node->next());
  for (Value* output : node->outputs()) {
    const bool list = output->type()->isSubtypeOf(*c10::ListType::ofTensors());
    if (list || output->type()->kind() == c10::TypeKind::TensorType) {
      Node* own = insert_for(node, list ? kOwnAll : kOwn, output, weights);
      own->output()->copyMetadata(output);
      output->replaceAllUsesAfterNodeWith(own, own->output());
    }
  }
}

/// One acquire for all weights of a node that are single tensors, and one for each that is a list already, or may be
/// None.
void insert_acquires(Node* node, const std::vector<Reader::Input>& inputs, const Step& weights) {
  std::vector<std::size_t> tensors; // positions
  std::vector<Value*> values;
  for (const Reader::Input& input : inputs) {
    Value* value = node->input(input.position);
    if (const auto list = value->type()->cast<c10::ListType>()) {
      const bool optionals = list->getElementType()->kind() == c10::TypeKind::OptionalType;
      wrap_input(node, input.position, optionals ? kAcquireOptionals : kAcquire, weights);
    } else if (value->type()->kind() == c10::TypeKind::OptionalType) {
      wrap_input(node, input.position, kAcquireOptional, weights);
    } else {
      tensors.push_back(input.position);
      values.push_back(value);
    }
  }
  if (tensors.empty()) {
    return;
  }
  const torch::jit::WithInsertPoint at(node);
  Graph& graph = *node->owningGraph();
  Node* list = graph.insertNode(graph.createList(c10::TensorType::get(), values));
  Node* acquire = insert_for(node, kAcquire, list->output(), weights);
  Node* unpack = graph.insertNode(graph.create(prim::ListUnpack, {acquire->output()}, 0));
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    node->replaceInput(tensors[i], unpack->addOutput()->setType(values[i]->type()));
  }
}

/// acquire([a, b]) unpacked again is a and b. False for any other node.
bool bypass_list(Node* acquire) {
  Node* list = acquire->input(0)->node();
  const auto& uses = acquire->output()->uses();
  const bool is_list = acquire->kind() == kAcquire && list->kind() == prim::ListConstruct &&
                       list->output()->uses().size() == 1 && uses.size() == 1 &&
                       uses[0].user->kind() == prim::ListUnpack;
  if (!is_list) {
    return false;
  }
  Node* unpack = uses[0].user;
  for (std::size_t i = 0; i < unpack->outputs().size(); ++i) {
    unpack->output(i)->replaceAllUsesWith(list->input(i));
  }
  unpack->destroy();
  acquire->destroy();
  list->destroy();
  return true;
}

} // namespace

LoweredSteps lower(Graph& graph, const WeightTrace& trace, const std::vector<bool>& stays) {
  LoweredSteps lowered;
  for (const Reader& traced : trace.readers) {
    const Reader reader = without(traced, stays);
    Node* node = reader.node;
    const Product* product = find_product(node);
    if (reader.inputs.empty()) {
      if (product) {
        node->s_(kPlacement, to_string(Mode::resident));
      }
      continue;
    }
    Value* indices = indices_of_lookup(node);
    const bool looks_up = indices && reader.inputs.size() == 1 && reader.inputs.front().position == 0;
    const Taken taken = product ? Taken::product : looks_up ? Taken::rows : Taken::leased;
    const std::vector<Loop> loops = loops_around(node);
    double times = 1;
    for (const Loop& loop : loops) {
      times *= static_cast<double>(loop.trips);
    }
    times = std::max(1.0, times / static_cast<double>(reader.alternatives.size()));
    const std::vector<Choice> parts = parts_of(product, reader);
    for (const Step& weights : reader.alternatives) {
      for (const Choice& part : parts) {
        Step both;
        std::set_intersection(weights.begin(), weights.end(), part.weights.begin(), part.weights.end(),
                              std::back_inserter(both));
        if (!both.empty()) {
          lowered.steps.push_back({std::move(both), node->kind().toQualString(), times, taken, loops});
        }
      }
    }
    if (reader.alternatives.size() > 1 && !looks_up) {
      lowered.choices.insert(lowered.choices.end(), parts.begin(), parts.end());
    }
    const WeightSet all = united(reader.alternatives);
    const Step weights(all.begin(), all.end());
    if (product) {
      note_weights(replace_kind(node, product->ours), weights);
    } else if (looks_up) {
      wrap_input(node, 0, kRows, weights)->addInput(indices);
    } else {
      insert_acquires(node, reader.inputs, weights);
      if (std::any_of(reader.inputs.begin(), reader.inputs.end(),
                      [&](const Reader::Input& input) { return may_alias_output(node, input.position); })) {
        own_outputs(node, weights);
      }
    }
  }
  graph.lint();
  return lowered;
}

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
      replace_kind(node, product->plain)->s_(kPlacement, placement);
    } else if (!bypass_list(node)) {
      node->output()->replaceAllUsesWith(node->input(0));
      node->destroy();
    }
  }
  graph->lint();
  return graph;
}

} // namespace offload
