#pragma once

#include <torch/csrc/jit/ir/ir.h>

#include <unordered_map>
#include <unordered_set>

namespace offload {

/// Which values of a graph a write may reach: those that may share memory with what is written, be it as a view,
/// through a container, a branch or a loop. Values that may share memory with a third count as sharing it with each
/// other, so that more may be reported than is true, and never less.
class SharedMemory {
 public:
  explicit SharedMemory(torch::jit::Graph& graph);

  /// True when some node may write the memory of `value`, or of a tensor in it.
  bool is_written(const torch::jit::Value* value);

 private:
  using Value = torch::jit::Value;

  const Value* group_of(const Value* value);
  void join(const Value* one, const Value* other);
  void join_control_flow(const torch::jit::Node* node);
  void join_values_of(const torch::jit::Node* node);

  std::unordered_map<const Value*, const Value*> parents_; // of a forest: the root stands for the group
  std::unordered_set<const Value*> written_;               // groups
};

} // namespace offload
