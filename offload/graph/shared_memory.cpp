#include <offload/graph/shared_memory.h>

#include <offload/graph/attributes.h>
#include <offload/graph/operators.h>

namespace offload {

using torch::jit::Block;
using torch::jit::Graph;
using torch::jit::Node;
namespace prim = torch::jit::prim;

SharedMemory::SharedMemory(Graph& graph) {
  for_each_node(graph.block(), [&](Node* node) {
    if (node->kind() == prim::If || node->kind() == prim::Loop) {
      join_control_flow(node);
    } else if (!is_metadata(node)) {
      join_values_of(node);
    }
    for (std::size_t i = 0; i < node->inputs().size(); ++i) {
      if (writes_input(node, i) || writes_elements(node, i)) {
        written_.insert(node->input(i));
      }
    }
  });
  std::unordered_set<const Value*> roots;
  for (const Value* value : written_) {
    roots.insert(group_of(value));
  }
  written_ = std::move(roots);
}

bool SharedMemory::is_written(const Value* value) { return written_.count(group_of(value)) > 0; }

const torch::jit::Value* SharedMemory::group_of(const Value* value) {
  const Value* root = value;
  for (auto parent = parents_.find(root); parent != parents_.end(); parent = parents_.find(root)) {
    root = parent->second;
  }
  while (value != root) { // the next search is shorter
    value = std::exchange(parents_[value], root);
  }
  return root;
}

void SharedMemory::join(const Value* one, const Value* other) {
  const Value* from = group_of(one);
  const Value* to = group_of(other);
  if (from != to) {
    parents_[from] = to;
  }
}

void SharedMemory::join_control_flow(const Node* node) {
  const bool loop = node->kind() == prim::Loop;
  for (std::size_t i = 0; i < node->outputs().size(); ++i) {
    for (const Block* block : node->blocks()) {
      join(node->output(i), block->outputs()[loop ? i + 1 : i]);
    }
    if (loop) {
      join(node->output(i), node->input(i + 2));
      join(node->output(i), node->blocks()[0]->inputs()[i + 1]);
    }
  }
}

/// Nodes without a schema are those of the language: containers, attributes, casts. What goes in comes out, or stays in
/// an object that went in.
void SharedMemory::join_values_of(const Node* node) {
  const bool all = !node->maybeSchema() || passes_on(node) || node->kind() == torch::jit::aten::set_;
  const Value* kept = nullptr; // an input that the others go into
  for (std::size_t i = 0; i < node->inputs().size(); ++i) {
    if (!all && !may_alias_output(node, i)) {
      continue;
    }
    for (const Value* output : node->outputs()) {
      join(node->input(i), output);
    }
    if (kept && (all || writes_input(node, 0))) {
      join(node->input(i), kept);
    }
    kept = kept ? kept : node->input(i);
  }
}

} // namespace offload
