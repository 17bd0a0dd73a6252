#include <offload/graph/trace_weights.h>

#include <offload/graph/gradients.h>
#include <offload/graph/operators.h>

namespace offload {

using torch::jit::Graph;
using torch::jit::Node;
using torch::jit::Value;
namespace prim = torch::jit::prim;

namespace {

/// As in "written by aten::add_".
std::string because_of(const Node* node, const std::string& what) { return what + " " + node->kind().toQualString(); }

/// Looks at what is done with weights where they arrive.
class Tracer {
 public:
  Tracer(const WeightFlow& flow, const ModuleWeights& weights) : flow_(flow), weights_(weights) {}

  WeightTrace run(Graph& graph) {
    for_each_node(graph.block(), [&](Node* node) { look_at(node); });
    for_each_node(graph.block(), [&](const Node* node) { look_at_gradients(node); });
    return std::move(trace_);
  }

 private:
  void keep(const WeightSet& ids, const std::string& because) {
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
      if (writes_input(node, i)) {
        look_at_write(node, i);
      }
    }
    if (node->kind() == torch::jit::aten::set_) { // the one becomes the other
      for (const Value* input : node->inputs()) {
        keep(flow_.of(input).may_alias, because_of(node, "written by"));
      }
    }
    const bool reads = !passes_on(node) && !is_metadata(node) && node->kind() != prim::If &&
                       node->kind() != prim::Loop && node->kind() != prim::GetAttr;
    if (reads) {
      look_at_reader(node);
    }
  }

  void look_at_write(const Node* node, std::size_t i) {
    const Value* written = node->input(i);
    const Carried& carried = flow_.of(written);
    const bool writes_tensors = !is_container(written->type()) || writes_elements(node, i);
    trace_.writes_state = trace_.writes_state || carried.is_of_module || (writes_tensors && !carried.may_alias.empty());
    if (writes_tensors) {
      keep(carried.may_alias, because_of(node, "written by"));
    } else if (carried.is_of_module) { // what is put into a container of the module stays there
      for (const Value* input : node->inputs()) {
        if (input != written) {
          keep(flow_.of(input).may_alias, "written to a container of the module");
        }
      }
    }
  }

  void look_at_reader(Node* node) {
    Reader reader{node, {}, {}};
    std::vector<Alternatives> parts; // by input
    for (std::size_t i = 0; i < node->inputs().size(); ++i) {
      const Carried& carried = flow_.of(node->input(i));
      if (carried.alternatives.empty() || moves_input(node, i)) {
        continue;
      }
      if (writes_input(node, i)) { // a copy of the container with leased tensors would be written instead
        keep(united(carried.alternatives), because_of(node, "written by"));
      } else if (!node->maybeSchema() || !can_lease(node->input(i)->type())) {
        keep(united(carried.alternatives), because_of(node, "handed to"));
      } else {
        reader.inputs.push_back({i, carried.alternatives, carried.at_once});
        parts.push_back(carried.alternatives);
      }
    }
    if (!reader.inputs.empty()) {
      reader.alternatives = combine(parts);
      trace_.readers.push_back(std::move(reader));
    }
  }

  /// Each lease is a tensor of its own: what is differentiated by a weight has to know the one that was read. Without
  /// inputs, gradients come to all that was read.
  void look_at_gradients(const Node* node) {
    if (!differentiates(node)) {
      return;
    }
    const std::string because = because_of(node, "handed to");
    for (const Value* input : node->inputs()) {
      keep(flow_.of(input).may_alias, because);
    }
    if (node->kind() == torch::jit::aten::backward) {
      trace_.writes_state = true; // gradients add up in the weights
      for (const Reader& reader : trace_.readers) {
        keep(united(reader.alternatives), because);
      }
    }
  }

  /// What is stored in an attribute, and the weight whose attribute is bound anew.
  void look_at_set_attribute(const Node* node) {
    const std::string& name = node->s(torch::jit::attr::name);
    keep(flow_.of(node->input(1)).may_alias, "written to attribute " + name);
    const c10::IValue* known = flow_.attributes.value_of(node->input(0));
    for (const c10::IValue& object : flow_.objects) {
      const auto type = object.toObjectRef().type();
      const bool may_be_it = known ? object.is(*known) : type == node->input(0)->type();
      if (may_be_it && type->hasAttribute(name)) {
        keep(weights_.reachable(object.toObjectRef().getAttr(name)), "written over in attribute " + name);
      }
    }
  }

  /// A module that is handed to a call which is not inlined takes its weights out of sight.
  void look_at_objects(const Node* node) {
    const std::string because = because_of(node, "handed to");
    for (const Value* input : node->inputs()) {
      if (const c10::IValue* value = flow_.attributes.value_of(input)) {
        if (value->isObject()) {
          keep(weights_.reachable(*value), because);
        }
        continue;
      }
      const auto kind = input->type()->kind();
      if (kind != c10::TypeKind::ClassType && kind != c10::TypeKind::InterfaceType) {
        continue;
      }
      for (const c10::IValue& object : flow_.objects) {
        if (object.type()->isSubtypeOf(*input->type())) {
          keep(weights_.reachable(object), because);
        }
      }
    }
  }

  const WeightFlow& flow_;
  const ModuleWeights& weights_;
  WeightTrace trace_;
};

} // namespace

WeightTrace trace_weights(Graph& graph, const Holders& holders, const AttributeNames& written,
                          const ModuleWeights& weights) {
  return Tracer(find_weight_flow(graph, holders, written, weights), weights).run(graph);
}

} // namespace offload
