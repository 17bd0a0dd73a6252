#include <offload/graph/attributes.h>

#include <torch/csrc/jit/api/function_impl.h>

#include <unordered_set>

#include <offload/tensor/values.h>

namespace offload {

using torch::jit::Block;
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

bool any_node(Block* block, const std::function<bool(const Node*)>& is_wanted) {
  bool found = false;
  for_each_node(block, [&](const Node* node) { found = found || is_wanted(node); });
  return found;
}

AttributeName attribute_of(const Node* node) { return {node->input(0)->type()->annotation_str(), node->s(attr::name)}; }

AttributeNames written_attributes(const torch::jit::Module& module) {
  AttributeNames written;
  std::unordered_set<const void*> seen;
  const std::function<void(torch::jit::Function&)> look_at = [&](torch::jit::Function& called) {
    auto* function = torch::jit::tryToGraphFunction(called);
    if (!function || !seen.insert(function).second) {
      return;
    }
    for_each_node(function->graph()->block(), [&](const Node* node) {
      if (node->kind() == prim::SetAttr) {
        written.insert(attribute_of(node));
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
  };
  visit_objects(module._ivalue(), [&](const c10::IValue& object) {
    for (torch::jit::Function* method : object.toObjectRef().type()->methods()) {
      look_at(*method);
    }
  });
  return written;
}

Attributes::Attributes(torch::jit::Graph& graph, const Holders& holders, const AttributeNames& written) {
  values_[graph.inputs()[0]] = holders.front();
  if (holders.size() > 1 && graph.inputs().back()->type() == holders.back().toObjectRef().type()) {
    values_[graph.inputs().back()] = holders.back();
  }
  // Types search for each name from their first.
  std::unordered_map<const c10::ClassType*, std::unordered_map<std::string, std::size_t>> slots_by_type;
  for_each_node(graph.block(), [&](const Node* node) {
    if (node->kind() != prim::GetAttr) {
      return;
    }
    const auto object = values_.find(node->input(0));
    if (object == values_.end() || !object->second.isObject()) {
      return;
    }
    const c10::ivalue::Object& holder = object->second.toObjectRef();
    const c10::ClassType& type = *holder.type();
    auto& slots = slots_by_type[&type];
    for (std::size_t i = slots.size(); i < type.numAttributes(); ++i) {
      slots.emplace(type.getAttributeName(i), i);
    }
    c10::IValue value = holder.getSlot(slots.at(node->s(attr::name)));
    const bool may_change = value.isObject() && !written.empty() && written.count(attribute_of(node)) > 0;
    if (!may_change) {
      values_[node->output()] = std::move(value);
    }
  });
}

} // namespace offload
