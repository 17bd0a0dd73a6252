#include <offload/graph/constants.h>

#include <torch/csrc/jit/api/function_impl.h>
#include <torch/csrc/jit/ir/constants.h>

#include <algorithm>
#include <unordered_set>

#include <offload/graph/attributes.h>
#include <offload/graph/shared_memory.h>
#include <offload/graph/weights.h>
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
  if (value.isTensor() || value.isTuple() || value.isList() || value.isGenericDict()) {
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

} // namespace

Storages written_constants(Graph& graph) {
  Storages written;
  SharedMemory memory(graph);
  for_each_node(graph.block(), [&](Node* node) {
    const auto value = node->kind() == prim::Constant && memory.is_written(node->output())
                           ? torch::jit::toIValue(node->output())
                           : std::nullopt;
    if (value) {
      for_each_tensor(*value, [&](const at::Tensor& tensor) { written.insert(storage_of(tensor)); });
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
    Value* attribute = graph.insertGetAttr(input, name);
    node->output()->replaceAllUsesWith(attribute);
    // The node itself stays until unused nodes are removed: the walk is at it.
  });
}

std::vector<Node*> large_constants(const torch::jit::Module& module) {
  std::vector<Node*> constants;
  std::unordered_set<const void*> seen; // types: modules of one type share its methods
  for (const torch::jit::Module& part : module.modules()) {
    if (!seen.insert(part.type().get()).second) {
      continue;
    }
    for (const auto& method : part.get_methods()) {
      auto* function = torch::jit::tryToGraphFunction(method.function());
      if (!function) {
        continue;
      }
      for_each_node(function->graph()->block(), [&](Node* node) {
        if (node->kind() == prim::Constant && node->hasAttribute(attr::value) &&
            node->kindOf(attr::value) == torch::jit::AttributeKind::t && is_large(node->t(attr::value))) {
          constants.push_back(node);
        }
      });
    }
  }
  return constants;
}

} // namespace offload
