#include <offload/graph/rewrite_devices.h>

#include <torch/csrc/jit/ir/constants.h>
#include <torch/csrc/jit/passes/dead_code_elimination.h>

#include <optional>

#include <offload/graph/attributes.h>
#include <offload/graph/device_flow.h>
#include <offload/tensor/values.h>

namespace offload {

using torch::jit::Value;
namespace prim = torch::jit::prim;

namespace {

/// What a constant becomes. None when it stays.
std::optional<c10::IValue> changed(const Value* constant, c10::Device device, const Move& move) {
  const auto value = torch::jit::toIValue(constant);
  if (!value || value->isObject()) {
    return std::nullopt;
  }
  if (value->isDevice() && value->toDevice() != device && value->toDevice().is_cpu()) {
    return device;
  }
  bool elsewhere = false; // some tensor
  visit_tensors("", *value, [&](const std::string&, const at::Tensor& tensor) {
    elsewhere = elsewhere || (tensor.defined() && !tensor.is_meta() && tensor.device() != device);
  });
  return elsewhere ? std::optional(map_tensors(*value, move, [](const c10::IValue&) { return false; })) : std::nullopt;
}

} // namespace

void rewrite_devices(const std::shared_ptr<torch::jit::Graph>& graph, c10::Device device, const Move& move,
                     std::vector<std::string>& rewritten) {
  // Where the CPU is the device, nothing has to be distinguished.
  const DeviceChanges changes = device.is_cpu() ? DeviceChanges() : find_device_changes(*graph, device);
  const auto report = [&](const std::string& what, c10::Device to) {
    rewritten.push_back(what + " -> " + c10::str(to));
  };
  for_each_node(graph->block(), [&](torch::jit::Node* node) {
    if (node->kind() != prim::Constant || node->output()->type()->kind() == c10::TypeKind::NoneType) {
      return;
    }
    std::vector<torch::jit::Use> uses = node->output()->uses();
    std::erase_if(uses, [&](const torch::jit::Use& use) { return changes.staying.count({use.user, use.offset}) > 0; });
    const auto value = uses.empty() ? std::nullopt : changed(node->output(), device, move);
    if (!value) {
      return;
    }
    const torch::jit::WithInsertPoint at(node);
    Value* constant = graph->insertConstant(*value, node->sourceRange());
    report("%" + node->output()->debugName() + " : " + node->output()->type()->str(), device);
    for (const torch::jit::Use& use : uses) {
      use.user->replaceInput(use.offset, constant);
    }
  });
  for (const torch::jit::Use& use : changes.made_without_device) {
    const torch::jit::WithInsertPoint at(use.user);
    use.user->replaceInput(use.offset, graph->insertConstant(device, use.user->sourceRange()));
    report("%" + use.user->output()->debugName() + " of " + use.user->kind().toQualString(), device);
  }
  for (const torch::jit::Use& use : changes.to_copy) {
    const torch::jit::WithInsertPoint at(use.user);
    Value* value = use.user->input(use.offset);
    use.user->replaceInput(use.offset, graph->insert(c10::Symbol::fromQualString("aten::cpu"), {value}));
    report("%" + value->debugName() + " for " + use.user->kind().toQualString(), c10::kCPU);
  }
  torch::jit::EliminateDeadCode(graph->block());
}

} // namespace offload
