#pragma once

#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/ir/ir.h>

#include <functional>
#include <unordered_map>

#include <offload/graph/weights.h>

namespace offload {

/// Calls `visit` for every node, those of nested blocks after the node that holds them. `visit` may insert before the
/// node that it is given.
inline void for_each_node(torch::jit::Block* block, const std::function<void(torch::jit::Node*)>& visit) {
  for (auto node = block->nodes().begin(); node != block->nodes().end();) {
    torch::jit::Node* current = *node++;
    visit(current);
    for (torch::jit::Block* nested : current->blocks()) {
      for_each_node(nested, visit);
    }
  }
}

/// What chains of GetAttr in a graph stand for, looked up in the module that is the graph's first input, and in the
/// holder of its constants if that is its last.
class Attributes {
 public:
  Attributes(torch::jit::Graph& graph, const Holders& holders) {
    if (graph.inputs().empty()) {
      return;
    }
    values_[graph.inputs()[0]] = holders.front()._ivalue();
    if (holders.size() > 1 && graph.inputs().back()->type() == holders.back().type()) {
      values_[graph.inputs().back()] = holders.back()._ivalue();
    }
    for_each_node(graph.block(), [&](torch::jit::Node* node) {
      if (node->kind() != torch::jit::prim::GetAttr) {
        return;
      }
      const auto object = values_.find(node->input(0));
      if (object != values_.end() && object->second.isObject()) {
        values_[node->output()] = object->second.toObject()->getAttr(node->s(torch::jit::attr::name));
      }
    });
  }

  /// Null when `value` is no attribute.
  const c10::IValue* value_of(const torch::jit::Value* value) const {
    const auto found = values_.find(value);
    return found == values_.end() ? nullptr : &found->second;
  }

 private:
  std::unordered_map<const torch::jit::Value*, c10::IValue> values_;
};

} // namespace offload
