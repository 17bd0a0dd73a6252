#include <offload/graph/trace_weights.h>

#include <ATen/core/function_schema.h>

#include <algorithm>
#include <unordered_set>

#include <offload/graph/attributes.h>
#include <offload/graph/operators.h>
#include <offload/graph/types.h>
#include <offload/graph/values.h>

namespace offload {

using torch::jit::Block;
using torch::jit::Graph;
using torch::jit::Node;
using torch::jit::Value;
namespace prim = torch::jit::prim;

namespace {

using Set = std::set<WeightId>;

/// What a value may carry: one of these, each a weight or the weights of a container.
using Alternatives = std::set<Step>;

class Tracer {
 public:
  Tracer(Graph& graph, const Holders& holders, const AttributeNames& written, const ModuleWeights& weights)
      : graph_(graph), weights_(weights), attributes_(graph, holders, written) {
    for (const torch::jit::Module& holder : holders) {
      visit_objects(holder._ivalue(), [&](const c10::IValue& object) { objects_.push_back(object); });
    }
  }

  WeightTrace run() {
    // Loops carry values backwards: repeat until nothing is added.
    do {
      changed_ = false;
      pass_on(graph_.block());
    } while (changed_);
    for_each_node(graph_.block(), [&](Node* node) { look_at(node); });
    return std::move(trace_);
  }

 private:
  template <typename Carried>
  void add(std::unordered_map<const Value*, Carried>& carried, const Value* to, const Carried& more) {
    if (more.empty()) {
      return;
    }
    Carried& known = carried[to];
    const std::size_t before = known.size();
    known.insert(more.begin(), more.end());
    changed_ = changed_ || known.size() != before;
  }

  template <typename Carried>
  static Carried of(const std::unordered_map<const Value*, Carried>& carried, const Value* value) {
    const auto found = carried.find(value);
    return found == carried.end() ? Carried() : found->second;
  }

  /// `to` may carry `more`, and no more than `at_once` of all that it may carry.
  void carry(const Value* to, const Alternatives& more, std::size_t at_once) {
    if (more.empty()) {
      return;
    }
    add(carries_, to, more);
    Set all;
    for (const Step& ids : of(carries_, to)) {
      all.insert(ids.begin(), ids.end());
    }
    std::size_t& known = at_once_[to];
    const std::size_t most = std::min(std::max(known, at_once), all.size());
    changed_ = changed_ || most != known;
    known = most;
  }

  std::size_t at_once(const Value* value) const {
    const auto known = at_once_.find(value);
    return known == at_once_.end() ? 0 : known->second;
  }

  void flow(const Value* from, const Value* to) {
    carry(to, of(carries_, from), at_once(from));
    add(may_alias_, to, of(may_alias_, from));
    flow_origin(from, to);
  }

  void flow_origin(const Value* from, const Value* to) {
    if (of_module_.count(from) > 0) {
      changed_ = of_module_.insert(to).second || changed_;
    }
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
  void get_attribute(const Node* node) {
    // Or of an object of the call's own: not told apart.
    changed_ = of_module_.insert(node->output()).second || changed_;
    const auto take = [&](const c10::IValue& value) {
      if (value.isObject()) {
        return;
      }
      const Step ids = weights_.reachable(value);
      if (!ids.empty()) {
        carry(node->output(), Alternatives{sorted(ids)}, ids.size());
        add(may_alias_, node->output(), Set(ids.begin(), ids.end()));
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

  static Step sorted(Step ids) {
    std::sort(ids.begin(), ids.end());
    return ids;
  }

  /// A container carries what its elements do, together.
  void construct(const Node* node) {
    for (const Value* input : node->inputs()) {
      add(may_alias_, node->output(), of(may_alias_, input));
    }
    carry_together({node->inputs().begin(), node->inputs().end()}, node->output());
  }

  void carry_together(const std::vector<const Value*>& inputs, const Value* output) {
    std::vector<Alternatives> parts;
    std::size_t together = 0;
    for (const Value* input : inputs) {
      parts.push_back(of(carries_, input));
      together += at_once(input);
    }
    carry(output, combine(parts), together);
  }

  /// First with first, second with second.
  static Alternatives combine(const std::vector<Alternatives>& parts) {
    std::size_t most = 0;
    for (const Alternatives& part : parts) {
      most = std::max(most, part.size());
    }
    Alternatives combined;
    for (std::size_t i = 0; i < most; ++i) {
      Set together;
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

  /// A view, or what is taken out of a container: if it is one tensor, it is one of those.
  void take_from(const Node* node, const Value* input, const Value* output) {
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

  void share_memory(const Node* node, const Value* input, const Value* output) {
    add(may_alias_, output, of(may_alias_, input));
    if (!copies_container(node) || holds_containers(output->type())) {
      flow_origin(input, output);
    }
  }

  /// Operators on containers: what goes in comes out, that of several in one, or is in the container that was filled
  /// from then on.
  void move_values(const Node* node) {
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
        Set together;
        for (const Alternatives& alternatives : {put, of(carries_, node->inputs()[0])}) {
          for (const Step& ids : alternatives) {
            together.insert(ids.begin(), ids.end());
          }
        }
        carry(node->inputs()[0], Alternatives{Step(together.begin(), together.end())}, together.size());
      }
    }
  }

  /// Outputs, and containers that are filled, may share the memory that a lease gave: a write to them is a write to the
  /// weight.
  void flow_aliases(const Node* node) {
    for (std::size_t i = 0; i < node->inputs().size(); ++i) {
      const Set ids = of(may_alias_, node->inputs()[i]);
      if (ids.empty() || !may_alias_output(node, i)) {
        continue;
      }
      for (const Value* output : node->outputs()) {
        add(may_alias_, output, ids);
      }
      if (i > 0 && writes_input(node, 0) && is_container(node->inputs()[0]->type())) {
        add(may_alias_, node->inputs()[0], ids);
      }
    }
  }

  template <typename Ids>
  void keep(const Ids& ids, const std::string& because) {
    for (const WeightId id : ids) {
      trace_.resident_because.emplace(id, because);
    }
  }

  void look_at(Node* node) {
    if (!passes_objects_on(node)) {
      look_at_objects(node);
    }
    if (node->kind() == prim::SetAttr) {
      // Objects that the call makes for itself, as for `with torch.autocast`, are gone with it.
      trace_.writes_state = trace_.writes_state || node->input(0)->node()->kind() != prim::CreateObject;
      look_at_set_attribute(node);
      return;
    }
    for (std::size_t i = 0; i < node->inputs().size(); ++i) {
      if (!writes_input(node, i)) {
        continue;
      }
      const Set ids = of(may_alias_, node->inputs()[i]);
      const bool of_module = of_module_.count(node->inputs()[i]) > 0;
      const bool writes_tensors = !is_container(node->inputs()[i]->type()) || writes_elements(node, i);
      trace_.writes_state = trace_.writes_state || of_module || (writes_tensors && !ids.empty());
      if (writes_tensors) {
        keep(ids, std::string("written by ") + node->kind().toQualString());
      } else if (of_module) { // what is put into a container of the module stays there
        for (const Value* input : node->inputs()) {
          keep(input == node->inputs()[i] ? Set() : of(may_alias_, input), "written to a container of the module");
        }
      }
    }
    if (node->kind() == torch::jit::aten::set_) { // the one becomes the other
      for (const Value* input : node->inputs()) {
        keep(of(may_alias_, input), "written by aten::set_");
      }
    }
    const bool reads = !passes_on(node) && !is_metadata(node) && node->kind() != prim::If &&
                       node->kind() != prim::Loop && node->kind() != prim::GetAttr;
    if (reads) {
      look_at_reader(node);
    }
  }

  void look_at_reader(Node* node) {
    Reader reader{node, {}, {}};
    for (std::size_t i = 0; i < node->inputs().size(); ++i) {
      const Alternatives alternatives = of(carries_, node->inputs()[i]);
      if (alternatives.empty() || moves_input(node, i)) {
        continue;
      }
      if (writes_input(node, i)) { // a copy of the container with leased tensors would be written instead
        for (const Step& ids : alternatives) {
          keep(ids, std::string("written by ") + node->kind().toQualString());
        }
      } else if (!node->maybeSchema() || !can_lease(node->inputs()[i]->type())) {
        for (const Step& ids : alternatives) {
          keep(ids, std::string("handed to ") + node->kind().toQualString());
        }
      } else {
        reader.inputs.push_back({i, {alternatives.begin(), alternatives.end()}, at_once(node->inputs()[i])});
      }
    }
    if (!reader.inputs.empty()) {
      std::vector<Alternatives> parts;
      for (const Reader::Input& input : reader.inputs) {
        parts.emplace_back(input.alternatives.begin(), input.alternatives.end());
      }
      const Alternatives combined = combine(parts);
      reader.alternatives.assign(combined.begin(), combined.end());
      trace_.readers.push_back(std::move(reader));
    }
  }

  /// What is stored in an attribute, and the weight whose attribute is bound anew.
  void look_at_set_attribute(const Node* node) {
    const std::string& name = node->s(torch::jit::attr::name);
    keep(of(may_alias_, node->input(1)), "written to attribute " + name);
    const auto bind_anew = [&](const c10::IValue& object) {
      if (object.toObjectRef().type()->hasAttribute(name)) {
        keep(weights_.reachable(object.toObjectRef().getAttr(name)), "written over in attribute " + name);
      }
    };
    if (const c10::IValue* object = attributes_.value_of(node->input(0))) {
      bind_anew(*object);
      return;
    }
    for (const c10::IValue& object : objects_) {
      if (object.toObjectRef().type() == node->input(0)->type()) {
        bind_anew(object);
      }
    }
  }

  /// A module that is handed to a call which is not inlined takes its weights out of sight.
  void look_at_objects(const Node* node) {
    const std::string because = std::string("handed to ") + node->kind().toQualString();
    for (const Value* input : node->inputs()) {
      if (const c10::IValue* value = attributes_.value_of(input)) {
        if (value->isObject()) {
          keep(weights_.reachable(*value), because);
        }
        continue;
      }
      const auto kind = input->type()->kind();
      if (kind != c10::TypeKind::ClassType && kind != c10::TypeKind::InterfaceType) {
        continue;
      }
      for (const c10::IValue& object : objects_) {
        if (object.type()->isSubtypeOf(*input->type())) {
          keep(weights_.reachable(object), because);
        }
      }
    }
  }

  Graph& graph_;
  const ModuleWeights& weights_;
  std::vector<c10::IValue> objects_; // all that the holders reach
  const Attributes attributes_;
  std::unordered_map<const Value*, Alternatives> carries_; // values that are weights, as placeholders
  std::unordered_map<const Value*, std::size_t> at_once_;  // how many of these
  std::unordered_map<const Value*, Set> may_alias_;        // and those that may share their memory
  std::unordered_set<const Value*> of_module_;             // attributes, and what is taken out of them
  bool changed_ = false;
  WeightTrace trace_;
};

} // namespace

WeightTrace trace_weights(Graph& graph, const Holders& holders, const AttributeNames& written,
                          const ModuleWeights& weights) {
  return Tracer(graph, holders, written, weights).run();
}

} // namespace offload
