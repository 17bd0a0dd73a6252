#include <offload/graph/trace_weights.h>

#include <ATen/core/function_schema.h>

#include <offload/graph/gradients.h>
#include <offload/graph/operators.h>
#include <offload/graph/weight_flow.h>
#include <offload/tensor/values.h>

namespace offload {

using torch::jit::Graph;
using torch::jit::Node;
using torch::jit::Value;
namespace prim = torch::jit::prim;

namespace {

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
      const WeightSet ids = flow_.may_alias(node->inputs()[i]);
      const bool of_module = flow_.is_of_module(node->inputs()[i]);
      const bool writes_tensors = !is_container(node->inputs()[i]->type()) || writes_elements(node, i);
      trace_.writes_state = trace_.writes_state || of_module || (writes_tensors && !ids.empty());
      if (writes_tensors) {
        keep(ids, std::string("written by ") + node->kind().toQualString());
      } else if (of_module) { // what is put into a container of the module stays there
        for (const Value* input : node->inputs()) {
          keep(input == node->inputs()[i] ? WeightSet() : flow_.may_alias(input),
               "written to a container of the module");
        }
      }
    }
    if (node->kind() == torch::jit::aten::set_) { // the one becomes the other
      for (const Value* input : node->inputs()) {
        keep(flow_.may_alias(input), "written by aten::set_");
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
    std::vector<Alternatives> parts; // by input
    for (std::size_t i = 0; i < node->inputs().size(); ++i) {
      const Alternatives alternatives = flow_.carried(node->inputs()[i]);
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
        reader.inputs.push_back({i, alternatives, flow_.at_once(node->inputs()[i])});
        parts.push_back(alternatives);
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
    const std::string because = std::string("handed to ") + node->kind().toQualString();
    for (const Value* input : node->inputs()) {
      keep(flow_.may_alias(input), because);
    }
    if (node->kind() == torch::jit::aten::backward) {
      trace_.writes_state = true; // gradients add up in the weights
      for (const Reader& reader : trace_.readers) {
        for (const Step& ids : reader.alternatives) {
          keep(ids, because);
        }
      }
    }
  }

  /// What is stored in an attribute, and the weight whose attribute is bound anew.
  void look_at_set_attribute(const Node* node) {
    const std::string& name = node->s(torch::jit::attr::name);
    keep(flow_.may_alias(node->input(1)), "written to attribute " + name);
    const auto bind_anew = [&](const c10::IValue& object) {
      if (object.toObjectRef().type()->hasAttribute(name)) {
        keep(weights_.reachable(object.toObjectRef().getAttr(name)), "written over in attribute " + name);
      }
    };
    if (const c10::IValue* object = flow_.attributes().value_of(node->input(0))) {
      bind_anew(*object);
      return;
    }
    for (const c10::IValue& object : flow_.objects()) {
      if (object.toObjectRef().type() == node->input(0)->type()) {
        bind_anew(object);
      }
    }
  }

  /// A module that is handed to a call which is not inlined takes its weights out of sight.
  void look_at_objects(const Node* node) {
    const std::string because = std::string("handed to ") + node->kind().toQualString();
    for (const Value* input : node->inputs()) {
      if (const c10::IValue* value = flow_.attributes().value_of(input)) {
        if (value->isObject()) {
          keep(weights_.reachable(*value), because);
        }
        continue;
      }
      const auto kind = input->type()->kind();
      if (kind != c10::TypeKind::ClassType && kind != c10::TypeKind::InterfaceType) {
        continue;
      }
      for (const c10::IValue& object : flow_.objects()) {
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
  return Tracer(WeightFlow(graph, holders, written, weights), weights).run(graph);
}

} // namespace offload
