#include <offload/graph/weight_flow.h>

#include <algorithm>
#include <utility>

#include <offload/graph/operators.h>
#include <offload/tensor/values.h>

namespace offload {

using torch::jit::Block;
using torch::jit::Node;
using torch::jit::Value;
namespace prim = torch::jit::prim;

WeightSet united(const Alternatives& alternatives) {
  WeightSet all;
  for (const Step& ids : alternatives) {
    all.insert(ids.begin(), ids.end());
  }
  return all;
}

Alternatives combine(const std::vector<Alternatives>& parts) {
  std::size_t most = 0;
  for (const Alternatives& part : parts) {
    most = std::max(most, part.size());
  }
  Alternatives combined;
  for (std::size_t i = 0; i < most; ++i) {
    WeightSet together;
    for (const Alternatives& part : parts) {
      if (!part.empty()) {
        const auto chosen = std::next(part.begin(), static_cast<std::ptrdiff_t>(i % part.size()));
        together.insert(chosen->begin(), chosen->end());
      }
    }
    combined.emplace(together.begin(), together.end());
  }
  return combined;
}

namespace {

/// Of a container: see Note [Alternatives].
constexpr std::size_t kMostAlternatives = 256;

const Carried kCarriesNothing;

class FlowFinder {
 public:
  FlowFinder(WeightFlow& flow, const ModuleWeights& weights) : flow_(flow), weights_(weights) {}

  void run(torch::jit::Graph& graph) {
    do { // loops carry values backwards: until nothing is added
      changed_ = false;
      pass_on(graph.block());
    } while (changed_);
  }

 private:
  void alias(const Value* to, WeightSet more) {
    WeightSet& known = flow_.carried[to].may_alias;
    const std::size_t before = known.size();
    known.merge(more);
    changed_ = changed_ || known.size() != before;
  }

  /// `to` may carry `more`, and no more than `at_once` of all that it may carry.
  void carry(const Value* to, Alternatives more, std::size_t at_once) {
    if (more.empty()) {
      return;
    }
    Carried& known = flow_.carried[to];
    const Alternatives before = known.alternatives;
    known.alternatives.merge(more);
    const WeightSet all = united(known.alternatives);
    if (known.counts_as_one || (known.alternatives.size() > kMostAlternatives && is_container(to->type()))) {
      known.counts_as_one = true;
      known.alternatives = {Step(all.begin(), all.end())};
    }
    const std::size_t most = std::min(std::max(known.at_once, at_once), all.size());
    changed_ = changed_ || known.alternatives != before || known.at_once != most;
    known.at_once = most;
  }

  void flow(const Value* from, const Value* to) {
    const Carried& carried = flow_.of(from);
    carry(to, carried.alternatives, carried.at_once);
    alias(to, carried.may_alias);
    if (carried.is_of_module) {
      set_of_module(to);
    }
  }

  void set_of_module(const Value* value) {
    changed_ = !std::exchange(flow_.carried[value].is_of_module, true) || changed_;
  }

  void pass_on(Block* block) {
    for (Node* node : block->nodes()) {
      if (node->kind() == prim::GetAttr) {
        get_attribute(node);
      } else if (node->kind() == prim::If) {
        for (Block* branch : node->blocks()) {
          pass_on(branch);
          for (std::size_t i = 0; i < node->outputs().size(); ++i) {
            flow(branch->outputs()[i], node->outputs()[i]);
          }
        }
      } else if (node->kind() == prim::Loop) {
        Block* body = node->blocks()[0];
        for (std::size_t i = 0; i < node->outputs().size(); ++i) {
          flow(node->inputs()[i + 2], body->inputs()[i + 1]);
          flow(body->outputs()[i + 1], body->inputs()[i + 1]);
        }
        pass_on(body);
        for (std::size_t i = 0; i < node->outputs().size(); ++i) {
          flow(node->inputs()[i + 2], node->outputs()[i]);
          flow(body->outputs()[i + 1], node->outputs()[i]);
        }
      } else if (is_construct(node)) {
        for (const Value* input : node->inputs()) {
          alias(node->output(), flow_.of(input).may_alias);
        }
        carry_together({node->inputs().begin(), node->inputs().end()}, node->output());
      } else if (passes_on(node)) {
        for (const Value* input : node->inputs()) {
          for (const Value* output : node->outputs()) {
            take_from(node, input, output);
          }
        }
      } else {
        move_values(node);
        flow_aliases(node);
      }
    }
  }

  /// Of an object that only the run picks, the attribute may be that of any object of the type.
  void get_attribute(const Node* node) {
    set_of_module(node->output()); // or of an object of the call's own: not distinguished
    const auto take = [&](const c10::IValue& value) {
      const WeightSet ids = value.isObject() ? WeightSet() : weights_.reachable(value);
      if (!ids.empty()) {
        carry(node->output(), {Step(ids.begin(), ids.end())}, ids.size());
        alias(node->output(), ids);
      }
    };
    if (const c10::IValue* value = flow_.attributes.value_of(node->output())) {
      take(*value);
      return;
    }
    const std::string& name = node->s(torch::jit::attr::name);
    for (const c10::IValue& object : flow_.objects) {
      const auto type = object.toObjectRef().type();
      if (type == node->input(0)->type() && type->hasAttribute(name)) {
        take(object.toObjectRef().getAttr(name));
      }
    }
  }

  void carry_together(const std::vector<const Value*>& inputs, const Value* output) {
    std::vector<Alternatives> parts;
    std::size_t together = 0;
    for (const Value* input : inputs) {
      parts.push_back(flow_.of(input).alternatives);
      together += flow_.of(input).at_once;
    }
    carry(output, combine(parts), together);
  }

  /// A view, or an element of a container: if it is one tensor, it is one of those.
  void take_from(const Node* node, const Value* input, const Value* output) {
    share_memory(node, input, output);
    if (is_container(output->type())) {
      carry(output, flow_.of(input).alternatives, flow_.of(input).at_once);
      return;
    }
    Alternatives taken;
    for (const WeightId id : united(flow_.of(input).alternatives)) {
      taken.insert({id});
    }
    carry(output, taken, 1);
  }

  void share_memory(const Node* node, const Value* input, const Value* output) {
    alias(output, flow_.of(input).may_alias);
    if (flow_.of(input).is_of_module && (!copies_container(node) || holds_containers(output->type()))) {
      set_of_module(output);
    }
  }

  /// Operators on containers: what goes in comes out, that of several in one, or is in the container that was filled
  /// from then on.
  void move_values(const Node* node) {
    std::vector<const Value*> moved;
    for (std::size_t i = 0; i < node->inputs().size(); ++i) {
      if (moves_input(node, i)) {
        moved.push_back(node->input(i));
      }
    }
    for (const Value* output : node->outputs()) {
      const bool joined = moved.size() > 1 && is_container(output->type());
      for (const Value* input : moved) {
        joined ? share_memory(node, input, output) : take_from(node, input, output);
      }
      if (joined) {
        carry_together(moved, output);
      }
    }
    if (!writes_input(node, 0)) {
      return;
    }
    for (std::size_t i = 1; i < node->inputs().size(); ++i) {
      const Alternatives& put = flow_.of(node->input(i)).alternatives;
      if (moves_input(node, i) && !put.empty()) {
        WeightSet together = united(put);
        together.merge(united(flow_.of(node->input(0)).alternatives));
        carry(node->input(0), {Step(together.begin(), together.end())}, together.size());
      }
    }
  }

  /// Outputs, and containers that are filled, may share the memory that a lease gave: a write to them is a write to the
  /// weight.
  void flow_aliases(const Node* node) {
    for (std::size_t i = 0; i < node->inputs().size(); ++i) {
      const WeightSet& ids = flow_.of(node->input(i)).may_alias;
      if (ids.empty() || !may_alias_output(node, i)) {
        continue;
      }
      for (const Value* output : node->outputs()) {
        alias(output, ids);
      }
      if (i > 0 && writes_input(node, 0) && is_container(node->input(0)->type())) {
        alias(node->input(0), ids);
      }
    }
  }

  WeightFlow& flow_;
  const ModuleWeights& weights_;
  bool changed_ = false;
};

} // namespace

const Carried& WeightFlow::of(const Value* value) const {
  const auto found = carried.find(value);
  return found == carried.end() ? kCarriesNothing : found->second;
}

WeightFlow find_weight_flow(torch::jit::Graph& graph, const Holders& holders, const AttributeNames& written,
                            const ModuleWeights& weights) {
  WeightFlow flow{Attributes(graph, holders, written), {}, {}};
  for (const c10::IValue& holder : holders) {
    visit_objects(holder, [&](const c10::IValue& object) { flow.objects.push_back(object); });
  }
  FlowFinder(flow, weights).run(graph);
  return flow;
}

} // namespace offload
