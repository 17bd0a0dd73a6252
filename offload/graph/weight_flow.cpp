#include <offload/graph/weight_flow.h>

#include <algorithm>

#include <offload/graph/operators.h>
#include <offload/tensor/values.h>

namespace offload {

using torch::jit::Block;
using torch::jit::Graph;
using torch::jit::Node;
using torch::jit::Value;
namespace prim = torch::jit::prim;

namespace {

/// Of a container: see Note [Alternatives].
constexpr std::size_t kMostAlternatives = 256;

WeightSet united(const Alternatives& alternatives) {
  WeightSet all;
  for (const Step& ids : alternatives) {
    all.insert(ids.begin(), ids.end());
  }
  return all;
}

Step sorted(Step ids) {
  std::sort(ids.begin(), ids.end());
  return ids;
}

} // namespace

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

WeightFlow::WeightFlow(Graph& graph, const Holders& holders, const AttributeNames& written,
                       const ModuleWeights& weights)
    : weights_(weights), attributes_(graph, holders, written) {
  for (const c10::IValue& holder : holders) {
    visit_objects(holder, [&](const c10::IValue& object) { objects_.push_back(object); });
  }
  do { // loops carry values backwards: until nothing is added
    changed_ = false;
    pass_on(graph.block());
  } while (changed_);
}

void WeightFlow::alias(const Value* to, const WeightSet& more) {
  if (more.empty()) {
    return;
  }
  WeightSet& known = may_alias_[to];
  const std::size_t before = known.size();
  known.insert(more.begin(), more.end());
  changed_ = changed_ || known.size() != before;
}

/// `to` may carry `more`, and no more than `at_once` of all that it may carry.
void WeightFlow::carry(const Value* to, const Alternatives& more, std::size_t at_once) {
  if (more.empty()) {
    return;
  }
  Alternatives& carried = carries_[to];
  const Alternatives before = carried;
  carried.insert(more.begin(), more.end());
  const WeightSet all = united(carried);
  if (one_of_many_.count(to) > 0 || (carried.size() > kMostAlternatives && is_container(to->type()))) {
    one_of_many_.insert(to);
    carried = {Step(all.begin(), all.end())};
  }
  changed_ = changed_ || carried != before;
  std::size_t& known = at_once_[to];
  const std::size_t most = std::min(std::max(known, at_once), all.size());
  changed_ = changed_ || most != known;
  known = most;
}

std::size_t WeightFlow::at_once(const Value* value) const {
  const auto known = at_once_.find(value);
  return known == at_once_.end() ? 0 : known->second;
}

void WeightFlow::flow(const Value* from, const Value* to) {
  carry(to, of(carries_, from), at_once(from));
  alias(to, of(may_alias_, from));
  flow_origin(from, to);
}

void WeightFlow::flow_origin(const Value* from, const Value* to) {
  if (of_module_.count(from) > 0) {
    changed_ = of_module_.insert(to).second || changed_;
  }
}

void WeightFlow::pass_on(Block* block) {
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
      construct(node);
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
void WeightFlow::get_attribute(const Node* node) {
  // Or of an object of the call's own: not distinguished.
  changed_ = of_module_.insert(node->output()).second || changed_;
  const auto take = [&](const c10::IValue& value) {
    if (value.isObject()) {
      return;
    }
    const Step ids = weights_.reachable(value);
    if (!ids.empty()) {
      carry(node->output(), Alternatives{sorted(ids)}, ids.size());
      alias(node->output(), WeightSet(ids.begin(), ids.end()));
    }
  };
  if (const c10::IValue* value = attributes_.value_of(node->output())) {
    take(*value);
    return;
  }
  const std::string& name = node->s(torch::jit::attr::name);
  for (const c10::IValue& object : objects_) {
    const auto type = object.toObjectRef().type();
    if (type == node->input(0)->type() && type->hasAttribute(name)) {
      take(object.toObjectRef().getAttr(name));
    }
  }
}

/// A container carries what its elements do, together.
void WeightFlow::construct(const Node* node) {
  for (const Value* input : node->inputs()) {
    alias(node->output(), of(may_alias_, input));
  }
  carry_together({node->inputs().begin(), node->inputs().end()}, node->output());
}

void WeightFlow::carry_together(const std::vector<const Value*>& inputs, const Value* output) {
  std::vector<Alternatives> parts;
  std::size_t together = 0;
  for (const Value* input : inputs) {
    parts.push_back(of(carries_, input));
    together += at_once(input);
  }
  carry(output, combine(parts), together);
}

/// A view, or an element of a container: if it is one tensor, it is one of those.
void WeightFlow::take_from(const Node* node, const Value* input, const Value* output) {
  share_memory(node, input, output);
  Alternatives taken;
  for (const Step& together : of(carries_, input)) {
    if (is_container(output->type())) {
      taken.insert(together);
      continue;
    }
    for (const WeightId id : together) {
      taken.insert({id});
    }
  }
  carry(output, taken, is_container(output->type()) ? at_once(input) : 1);
}

void WeightFlow::share_memory(const Node* node, const Value* input, const Value* output) {
  alias(output, of(may_alias_, input));
  if (!copies_container(node) || holds_containers(output->type())) {
    flow_origin(input, output);
  }
}

/// Operators on containers: what goes in comes out, that of several in one, or is in the container that was filled
/// from then on.
void WeightFlow::move_values(const Node* node) {
  std::vector<const Value*> moved;
  for (std::size_t i = 0; i < node->inputs().size(); ++i) {
    if (moves_input(node, i)) {
      moved.push_back(node->inputs()[i]);
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
  for (std::size_t i = 0; i < node->inputs().size(); ++i) {
    if (!moves_input(node, i)) {
      continue;
    }
    const Value* input = node->inputs()[i];
    const Alternatives put = of(carries_, input);
    if (i > 0 && !put.empty() && writes_input(node, 0)) {
      WeightSet together = united(put);
      together.merge(united(of(carries_, node->inputs()[0])));
      carry(node->inputs()[0], Alternatives{Step(together.begin(), together.end())}, together.size());
    }
  }
}

/// Outputs, and containers that are filled, may share the memory that a lease gave: a write to them is a write to the
/// weight.
void WeightFlow::flow_aliases(const Node* node) {
  for (std::size_t i = 0; i < node->inputs().size(); ++i) {
    const WeightSet ids = of(may_alias_, node->inputs()[i]);
    if (ids.empty() || !may_alias_output(node, i)) {
      continue;
    }
    for (const Value* output : node->outputs()) {
      alias(output, ids);
    }
    if (i > 0 && writes_input(node, 0) && is_container(node->inputs()[0]->type())) {
      alias(node->inputs()[0], ids);
    }
  }
}

} // namespace offload
