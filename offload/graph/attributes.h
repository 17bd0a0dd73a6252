#pragma once

#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/ir/ir.h>

#include <functional>
#include <set>
#include <string>
#include <unordered_map>
#include <utility>

#include <offload/graph/weights.h>

namespace offload {

/// Calls `visit` for every node, those of nested blocks after the node that holds them. `visit` may insert before the
/// node that it is given.
void for_each_node(torch::jit::Block* block, const std::function<void(torch::jit::Node*)>& visit);

/// True when `is_wanted` is for some node, those of nested blocks included.
bool any_node(torch::jit::Block* block, const std::function<bool(const torch::jit::Node*)>& is_wanted);

/// Type and attribute.
using AttributeName = std::pair<std::string, std::string>;
using AttributeNames = std::set<AttributeName>;

/// What a GetAttr or a SetAttr names.
AttributeName attribute_of(const torch::jit::Node* node);

/// Those that some method of the module or of an object below it sets, or a function that it calls.
AttributeNames written_attributes(const torch::jit::Module& module);

/// What chains of GetAttr in a graph stand for, looked up in the module that is the graph's first input, and in the
/// holder of its constants if that is its last. An object in an attribute that is `written` is not known: it may be
/// another one by then.
class Attributes {
 public:
  Attributes(torch::jit::Graph& graph, const Holders& holders, const AttributeNames& written);

  /// Null when `value` is no attribute.
  const c10::IValue* value_of(const torch::jit::Value* value) const {
    const auto found = values_.find(value);
    return found == values_.end() ? nullptr : &found->second;
  }

 private:
  std::unordered_map<const torch::jit::Value*, c10::IValue> values_;
};

} // namespace offload
