#include <offload/graph/constants.h>

#include <torch/csrc/jit/api/function_impl.h>
#include <torch/csrc/jit/ir/constants.h>

#include <algorithm>
#include <unordered_map>
#include <utility>
#include <vector>

#include <offload/graph/attributes.h>
#include <offload/graph/operators.h>
#include <offload/tensor/values.h>

namespace offload {

using torch::jit::Graph;
using torch::jit::Node;
using torch::jit::Value;
namespace prim = torch::jit::prim;
namespace attr = torch::jit::attr;

namespace {

bool is_large(const at::Tensor& tensor) {
  const auto [begin, end] = is_weight_like(tensor) ? byte_range(tensor) : std::pair<std::uint64_t, std::uint64_t>();
  return end - begin >= kSmallBytes;
}

void for_each_tensor(const c10::IValue& value, const std::function<void(const at::Tensor&)>& visit) {
  if (!value.isObject()) {
    visit_tensors("", value, [&](const std::string&, const at::Tensor& tensor) { visit(tensor); });
  }
}

const void* storage_of(const at::Tensor& tensor) {
  return tensor.defined() && tensor.has_storage() ? tensor.storage().unsafeGetStorageImpl() : nullptr;
}

/// Freezing names constants after the attributes that they were; saving drops it.
std::string name_for(const Value* constant, const torch::jit::Module& holder) {
  const std::string name = constant->debugName();
  const std::string stem =
      name.starts_with("self.") ? name.substr(5) : "c" + std::to_string(holder.type()->numAttributes());
  std::string unique = stem;
  for (int i = 2; holder.hasattr(unique); ++i) {
    unique = stem + "_" + std::to_string(i);
  }
  return unique;
}

std::string attribute_for(const c10::IValue& value, const Value* constant, torch::jit::Module& holder) {
  const auto& slots = holder._ivalue()->slots();
  const auto known = std::find_if(slots.begin(), slots.end(), [&](const c10::IValue& slot) { return slot.is(value); });
  if (known != slots.end()) {
    return holder.type()->getAttributeName(known - slots.begin());
  }
  const std::string name = name_for(constant, holder);
  holder.register_attribute(name, value.isTensor() ? c10::TypePtr(c10::TensorType::get()) : value.type(), value);
  return name;
}

/// Which values of a graph a write may reach: those that may share memory with what is written, be it as a view,
/// through a container, a branch or a loop. Values that may share memory with a third count as sharing it with each
/// other, so that more may be reported than is true, and never less.
class SharedMemory {
 public:
  explicit SharedMemory(Graph& graph) {
    std::vector<const Value*> written;
    for_each_node(graph.block(), [&](Node* node) {
      if (node->kind() == prim::If || node->kind() == prim::Loop) {
        join_control_flow(node);
      } else if (!is_metadata(node)) {
        join_values_of(node);
      }
      for (std::size_t i = 0; i < node->inputs().size(); ++i) {
        if (writes_input(node, i) || writes_elements(node, i)) {
          written.push_back(node->input(i));
        }
      }
    });
    for (const Value* value : written) {
      written_.insert(group_of(value));
    }
  }

  /// True when some node may write the memory of `value`, or of a tensor in it.
  bool is_written(const Value* value) { return written_.count(group_of(value)) > 0; }

 private:
  const Value* group_of(const Value* value) {
    const Value* root = value;
    for (auto parent = parents_.find(root); parent != parents_.end(); parent = parents_.find(root)) {
      root = parent->second;
    }
    while (value != root) { // the next search is shorter
      value = std::exchange(parents_[value], root);
    }
    return root;
  }

  void join(const Value* one, const Value* other) {
    const Value* from = group_of(one);
    const Value* to = group_of(other);
    if (from != to) {
      parents_[from] = to;
    }
  }

  void join_control_flow(const Node* node) {
    const bool loop = node->kind() == prim::Loop;
    for (std::size_t i = 0; i < node->outputs().size(); ++i) {
      for (const torch::jit::Block* block : node->blocks()) {
        join(node->output(i), block->outputs()[loop ? i + 1 : i]);
      }
      if (loop) {
        join(node->output(i), node->input(i + 2));
        join(node->output(i), node->blocks()[0]->inputs()[i + 1]);
      }
    }
  }

  /// Nodes without a schema are those of the language: containers, attributes, casts. What goes in comes out, or stays
  /// in an object that went in.
  void join_values_of(const Node* node) {
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

  std::unordered_map<const Value*, const Value*> parents_; // of a forest: the root stands for the group
  std::unordered_set<const Value*> written_;               // groups
};

} // namespace

Storages written_constants(Graph& graph) {
  Storages written;
  SharedMemory memory(graph);
  for_each_node(graph.block(), [&](const Node* node) {
    if (node->kind() == prim::Constant && memory.is_written(node->output())) {
      if (const auto value = torch::jit::toIValue(node->output())) {
        for_each_tensor(*value, [&](const at::Tensor& tensor) { written.insert(storage_of(tensor)); });
      }
    }
  });
  written.erase(nullptr);
  return written;
}

void take_constants(Graph& graph, torch::jit::Module& holder, const Storages& written) {
  Value* input = nullptr;
  const auto holds_taken = [&](const c10::IValue& value) {
    bool found = false;
    for_each_tensor(value, [&](const at::Tensor& tensor) {
      found = found || is_large(tensor) || written.count(storage_of(tensor)) > 0;
    });
    return found;
  };
  for_each_node(graph.block(), [&](Node* node) {
    if (node->kind() != prim::Constant) {
      return;
    }
    const auto value = torch::jit::toIValue(node->output());
    if (!value || !holds_taken(*value)) {
      return;
    }
    if (!input) {
      input = graph.addInput("constants");
      input->setType(holder.type());
    }
    const std::string name = attribute_for(*value, node->output(), holder);
    const torch::jit::WithInsertPoint at(node);
    node->output()->replaceAllUsesWith(graph.insertGetAttr(input, name));
    // The node itself stays until unused nodes are removed: the walk is at it.
  });
}

void replace_large_constants(const torch::jit::Module& module, const Replace& replace) {
  std::unordered_set<const void*> seen; // types: modules of one type share its methods
  for (const torch::jit::Module& part : module.modules()) {
    if (!seen.insert(part.type().get()).second) {
      continue;
    }
    for (const auto& method : part.get_methods()) {
      if (auto* function = torch::jit::tryToGraphFunction(method.function())) {
        for_each_node(function->graph()->block(), [&](Node* node) {
          if (node->kind() == prim::Constant && node->hasAttribute(attr::value) &&
              node->kindOf(attr::value) == torch::jit::AttributeKind::t && is_large(node->t(attr::value))) {
            node->t_(attr::value, replace(node->t(attr::value)));
          }
        });
      }
    }
  }
}

} // namespace offload
