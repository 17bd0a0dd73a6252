#pragma once

#include <torch/csrc/jit/ir/ir.h>

#include <set>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include <offload/graph/attributes.h>
#include <offload/graph/weights.h>

namespace offload {

using WeightSet = std::set<WeightId>;

/// What a value may carry: one of these, each a weight or the weights of a container.
using Alternatives = std::set<Step>;

/// First with first, second with second: some combinations, with every weight in one of them.
Alternatives combine(const std::vector<Alternatives>& parts);

/// What the values of a graph carry. Containers, views and branches pass weights on; loops carry them backwards.
class WeightFlow {
 public:
  /// `graph` is prepared: its first input is the module. `written` are the attributes that methods set.
  WeightFlow(torch::jit::Graph& graph, const Holders& holders, const AttributeNames& written,
             const ModuleWeights& weights);

  /// Of a value that is weights, as placeholders, which.
  Alternatives carried(const torch::jit::Value* value) const { return of(carries_, value); }

  /// How many of these, at most.
  std::size_t at_once(const torch::jit::Value* value) const;

  /// Weights that may share memory with a value.
  WeightSet may_alias(const torch::jit::Value* value) const { return of(may_alias_, value); }

  /// True for attributes of the module, and for their elements.
  bool is_of_module(const torch::jit::Value* value) const { return of_module_.count(value) > 0; }

  const Attributes& attributes() const { return attributes_; }

  /// All that the holders reach.
  const std::vector<c10::IValue>& objects() const { return objects_; }

 private:
  using Value = torch::jit::Value;
  using Node = torch::jit::Node;

  template <typename Carried>
  static Carried of(const std::unordered_map<const Value*, Carried>& carried, const Value* value) {
    const auto found = carried.find(value);
    return found == carried.end() ? Carried() : found->second;
  }

  void alias(const Value* to, const WeightSet& more);
  void carry(const Value* to, const Alternatives& more, std::size_t at_once);
  void carry_together(const std::vector<const Value*>& inputs, const Value* output);
  void flow(const Value* from, const Value* to);
  void flow_origin(const Value* from, const Value* to);
  void flow_aliases(const Node* node);
  void pass_on(torch::jit::Block* block);
  void get_attribute(const Node* node);
  void construct(const Node* node);
  void take_from(const Node* node, const Value* input, const Value* output);
  void share_memory(const Node* node, const Value* input, const Value* output);
  void move_values(const Node* node);

  const ModuleWeights& weights_;
  std::vector<c10::IValue> objects_;
  const Attributes attributes_;
  std::unordered_map<const Value*, Alternatives> carries_;
  std::unordered_set<const Value*> one_of_many_; // those with all in one alternative, for there were too many
  std::unordered_map<const Value*, std::size_t> at_once_;
  std::unordered_map<const Value*, WeightSet> may_alias_;
  std::unordered_set<const Value*> of_module_;
  bool changed_ = false;
};

} // namespace offload
