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

// Note [Alternatives]
//
// Often only the run knows which weights a node reads: those of `list[i]`, or of the branch that was taken. What it may
// be is a set of *alternatives*, each a Step: weights that are read together. A tensor has an alternative for each
// weight that it may be. A container has one for each set of weights that it may hold.
//
//   x = list[i] if c else w     {0} {1} {2} {3}     where list holds 0, 1, 2 and w is 3
//   y = [list[i], w]            {0,3} {1,3} {2,3}
//
// Of a node with several inputs, or a container of several elements, combine() takes only so many combinations that
// each alternative of each part is in one, since all of them could be too many. A container that still gets more than
// 256, as in loops that join lists, counts as one that holds all.
//
// lower() makes a step of each alternative, and takes them to be executed equally often. That is an estimate. A call
// leases what it then has, and shows its order.
//
// What finds room must not be an estimate. So `at_once` says how many weights a value carries at most, and a node
// becomes a Choice (plan/pass.h): any `at_once` of these weights. [list[i], list[j]] has the alternatives {0} {1} {2},
// and is any two of 0, 1 and 2. The plan leaves room in the ring for the `at_once` largest that stream.

/// What a value may carry: see Note [Alternatives].
using Alternatives = std::set<Step>;

/// First with first, second with second: some combinations, with every alternative in one of them.
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
  std::unordered_set<const Value*> one_of_many_; // those whose alternatives were too many, and are one
  std::unordered_map<const Value*, std::size_t> at_once_;
  std::unordered_map<const Value*, WeightSet> may_alias_;
  std::unordered_set<const Value*> of_module_;
  bool changed_ = false;
};

} // namespace offload
