#pragma once

#include <torch/csrc/jit/ir/ir.h>

#include <set>
#include <unordered_map>
#include <vector>

#include <offload/graph/attributes.h>
#include <offload/graph/weights.h>

namespace offload {

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

/// All weights in them.
WeightSet united(const Alternatives& alternatives);

/// First with first, second with second: some combinations, with every alternative in one of them.
Alternatives combine(const std::vector<Alternatives>& parts);

/// What a value of a graph carries.
struct Carried {
  Alternatives alternatives;  ///< where it is weights, as placeholders: which
  std::size_t at_once = 0;    ///< of these, at most
  WeightSet may_alias;        ///< weights that may share memory with it
  bool is_of_module = false;  ///< an attribute of the module, or an element of one
  bool counts_as_one = false; ///< its alternatives were too many, and are one
};

/// What the values of a graph carry. Containers, views and branches pass weights on; loops carry them backwards.
struct WeightFlow {
  Attributes attributes;
  std::vector<c10::IValue> objects; ///< all that the holders reach
  std::unordered_map<const torch::jit::Value*, Carried> carried;

  /// Valid as long as this is.
  const Carried& of(const torch::jit::Value* value) const;
};

/// `graph` is prepared: its first input is the module. `written` are the attributes that methods set.
WeightFlow find_weight_flow(torch::jit::Graph& graph, const Holders& holders, const AttributeNames& written,
                            const ModuleWeights& weights);

} // namespace offload
