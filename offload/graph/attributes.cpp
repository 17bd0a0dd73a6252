#include <offload/graph/attributes.h>

#include <torch/csrc/jit/api/function_impl.h>

#include <unordered_set>

#include <offload/tensor/values.h>

namespace offload {

using torch::jit::Block;
using torch::jit::Graph;
using torch::jit::Node;
namespace prim = torch::jit::prim;
namespace attr = torch::jit::attr;

void for_each_node(Block* block, const std::function<void(Node*)>& visit) {
  for (auto node = block->nodes().begin(); node != block->nodes().end();) {
    Node* current = *node++;
    visit(current);
    for (Block* nested : current->blocks()) {
      for_each_node(nested, visit);
    }
  }
}

namespace {

class SetAttrFinder {
 public:
  AttributeNames found;

  void look_at_type(const c10::ClassType& type) {
    for (torch::jit::Function* method : type.methods()) {
      look_at(*method);
    }
  }

 private:
  void look_at(torch::jit::Function& called) {
    auto* function = torch::jit::tryToGraphFunction(called);
    if (!function || !seen_.insert(function).second) {
      return;
    }
    for_each_node(function->graph()->block(), [&](Node* node) {
      if (node->kind() == prim::SetAttr) {
        found.emplace(node->input(0)->type()->annotation_str(), node->s(attr::name));
      } else if (node->kind() == prim::CallFunction) {
        look_at(*node->input(0)->type()->expectRef<c10::FunctionType>().function());
      } else if (node->kind() == prim::CallMethod) {
        const auto type = node->input(0)->type()->cast<c10::ClassType>();
        torch::jit::Function* method = type ? type->findMethod(node->s(attr::name)) : nullptr;
        if (method) {
          look_at(*method);
        }
      }
    });
  }

  std::unordered_set<const void*> seen_;
};

} // namespace

AttributeNames written_attributes(const torch::jit::Module& module) {
  SetAttrFinder finder;
  visit_objects(module._ivalue(),
                [&](const c10::IValue& object) { finder.look_at_type(*object.toObjectRef().type()); });
  return finder.found;
}

namespace {

/// Where types keep their attributes: they search for each name from their first.
class Slots {
 public:
  std::size_t of(const c10::ClassType& type, const std::string& name) {
    auto& slots = by_type_[&type];
    if (slots.empty()) {
      for (std::size_t i = 0; i < type.numAttributes(); ++i) {
        slots.emplace(type.getAttributeName(i), i);
      }
    }
    return slots.at(name);
  }

 private:
  std::unordered_map<const c10::ClassType*, std::unordered_map<std::string, std::size_t>> by_type_;
};

} // namespace

Attributes::Attributes(Graph& graph, const Holders& holders, const AttributeNames& written) {
  if (graph.inputs().empty()) {
    return;
  }
  values_[graph.inputs()[0]] = holders.front();
  if (holders.size() > 1 && graph.inputs().back()->type() == holders.back().toObjectRef().type()) {
    values_[graph.inputs().back()] = holders.back();
  }
  Slots slots;
  for_each_node(graph.block(), [&](Node* node) {
    if (node->kind() != prim::GetAttr) {
      return;
    }
    const auto object = values_.find(node->input(0));
    if (object == values_.end() || !object->second.isObject()) {
      return;
    }
    const c10::ivalue::Object& holder = object->second.toObjectRef();
    c10::IValue value = holder.getSlot(slots.of(*holder.type(), node->s(attr::name)));
    const bool may_change = value.isObject() && !written.empty() &&
                            written.count({node->input(0)->type()->annotation_str(), node->s(attr::name)}) > 0;
    if (!may_change) {
      values_[node->output()] = std::move(value);
    }
  });
}

} // namespace offload
