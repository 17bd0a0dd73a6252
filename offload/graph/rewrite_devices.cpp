#include <offload/graph/rewrite_devices.h>

#include <torch/csrc/jit/ir/constants.h>
#include <torch/csrc/jit/passes/dead_code_elimination.h>

#include <optional>

#include <offload/graph/attributes.h>
#include <offload/graph/device_flow.h>
#include <offload/tensor/values.h>

namespace offload {

using torch::jit::Graph;
using torch::jit::Node;
using torch::jit::Value;
namespace prim = torch::jit::prim;

namespace {

/// True for a tensor, or a container of tensors, of which some are not on `device`.
bool is_elsewhere(const c10::IValue& value, c10::Device device) {
  bool elsewhere = false;
  if (value.isTensor() || value.isTuple() || value.isList() || value.isGenericDict()) {
    visit_tensors("", value, [&](const std::string&, const at::Tensor& tensor) {
      elsewhere = elsewhere || (tensor.defined() && !tensor.is_meta() && tensor.device() != device);
    });
  }
  return elsewhere;
}

/// What a constant becomes. None when it stays.
std::optional<c10::IValue> changed(const Value* constant, c10::Device device, const Move& move) {
  const auto value = torch::jit::toIValue(constant);
  if (value && value->isDevice() && value->toDevice() != device && value->toDevice().is_cpu()) {
    return device;
  }
  if (value && is_elsewhere(*value, device)) {
    return map_tensors(*value, move, [](const c10::IValue&) { return false; });
  }
  return std::nullopt;
}

} // namespace

void rewrite_devices(const std::shared_ptr<Graph>& graph, c10::Device device, const Move& move,
                     std::vector<std::string>& rewritten) {
  std::optional<DeviceFlow> flow; // none where the CPU is the device, and nothing has to be distinguished
  if (!device.is_cpu()) {
    flow.emplace(*graph, device);
  }
  const auto report = [&](const std::string& what, c10::Device to) {
    rewritten.push_back(what + " -> " + c10::str(to));
  };
  for_each_node(graph->block(), [&](Node* node) {
    if (node->kind() != prim::Constant || node->output()->type()->kind() == c10::TypeKind::NoneType) {
      return;
    }
    std::vector<torch::jit::Use> uses;
    for (const torch::jit::Use& use : node->output()->uses()) {
      if (!flow || !flow->stays(use)) {
        uses.push_back(use);
      }
    }
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
  for (const torch::jit::Use& use : flow ? flow->made_without_device() : std::vector<torch::jit::Use>()) {
    const torch::jit::WithInsertPoint at(use.user);
    use.user->replaceInput(use.offset, graph->insertConstant(device, use.user->sourceRange()));
    report("%" + use.user->output()->debugName() + " of " + use.user->kind().toQualString(), device);
  }
  for (const torch::jit::Use& use : flow ? flow->to_copy() : std::vector<torch::jit::Use>()) {
    const torch::jit::WithInsertPoint at(use.user);
    Value* value = use.user->input(use.offset);
    use.user->replaceInput(use.offset, graph->insert(c10::Symbol::fromQualString("aten::cpu"), {value}));
    report("%" + value->debugName() + " for " + use.user->kind().toQualString(), c10::kCPU);
  }
  torch::jit::EliminateDeadCode(graph->block());
}

} // namespace offload
