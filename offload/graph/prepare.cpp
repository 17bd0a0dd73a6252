#include <offload/graph/prepare.h>

#include <torch/csrc/jit/api/function_impl.h>
#include <torch/csrc/jit/ir/constants.h>
#include <torch/csrc/jit/passes/autocast.h>
#include <torch/csrc/jit/passes/constant_propagation.h>
#include <torch/csrc/jit/passes/dead_code_elimination.h>

#include <set>

#include <offload/graph/attributes.h>
#include <offload/graph/inline_calls.h>

namespace offload {

using torch::jit::Block;
using torch::jit::Graph;
using torch::jit::Node;
using torch::jit::Value;
namespace prim = torch::jit::prim;
namespace attr = torch::jit::attr;

std::shared_ptr<Graph> prepare_method(const torch::jit::Module& module, const std::string& method) {
  auto& function = torch::jit::toGraphFunction(module.get_method(method).function());
  auto graph = function.graph()->copy();
  inline_calls(graph, module);
  torch::jit::Autocast(graph);
  return graph;
}

void rewrite_devices(const std::shared_ptr<Graph>& graph, c10::Device device, std::vector<std::string>& rewritten) {
  for_each_node(graph->block(), [&](Node* node) {
    if (node->kind() != prim::Constant || node->output()->type()->kind() == c10::TypeKind::NoneType) {
      return;
    }
    const auto value = torch::jit::toIValue(node->output());
    if (!value) {
      return;
    }
    c10::IValue changed;
    if (value->isDevice() && value->toDevice() != device && value->toDevice().is_cpu()) {
      changed = device;
    } else if (value->isTensor() && value->toTensor().defined() && value->toTensor().device() != device &&
               !value->toTensor().is_meta()) {
      changed = value->toTensor().to(device);
    } else {
      return;
    }
    const torch::jit::WithInsertPoint at(node);
    Value* constant = graph->insertConstant(changed, node->sourceRange());
    rewritten.push_back("%" + node->output()->debugName() + " : " + node->output()->type()->str() + " -> " +
                        c10::str(device));
    node->output()->replaceAllUsesWith(constant);
  });
  torch::jit::EliminateDeadCode(graph->block());
}

namespace {

/// (type, attribute) pairs that some method of the module or of one below it writes.
std::set<std::pair<std::string, std::string>> written_attributes(const torch::jit::Module& module) {
  std::set<std::pair<std::string, std::string>> written;
  for (const torch::jit::Module& part : module.modules()) {
    for (const auto& method : part.get_methods()) {
      auto* function = torch::jit::tryToGraphFunction(method.function());
      if (!function) {
        continue;
      }
      for_each_node(function->graph()->block(), [&](Node* node) {
        if (node->kind() == prim::SetAttr) {
          written.emplace(node->input(0)->type()->annotation_str(), node->s(attr::name));
        }
      });
    }
  }
  return written;
}

const c10::Symbol kIsGradEnabled = c10::Symbol::fromQualString("aten::is_grad_enabled");

bool is_simple(const c10::IValue& value) {
  return value.isBool() || value.isInt() || value.isDouble() || value.isString() || value.isNone();
}

} // namespace

void fold_attributes(std::shared_ptr<Graph>& graph, const Holders& holders) {
  const auto written = written_attributes(holders.front());
  const Attributes attributes(*graph, holders);
  bool sets_modes = false; // `with torch.enable_grad():` and the like
  for_each_node(graph->block(), [&](Node* node) { sets_modes = sets_modes || node->kind() == prim::Enter; });
  for_each_node(graph->block(), [&](Node* node) {
    std::optional<c10::IValue> known;
    if (node->kind() == prim::GetAttr) {
      const c10::IValue* value = attributes.value_of(node->output());
      const bool is_written = written.count({node->input(0)->type()->annotation_str(), node->s(attr::name)}) > 0;
      if (value && is_simple(*value) && !is_written) {
        known = *value;
      }
    } else if (node->kind() == kIsGradEnabled && !sets_modes) {
      known = false; // a call runs without gradients
    } else if (node->kind() == prim::requires_grad) {
      // Of a parameter, this is what it was made with; of anything computed without gradients it is left to the run.
      const c10::IValue* value = attributes.value_of(node->input(0));
      if (value && value->isTensor()) {
        known = value->toTensor().requires_grad();
      }
    }
    if (known) {
      const torch::jit::WithInsertPoint at(node);
      Value* constant = graph->insertConstant(*known, node->sourceRange());
      constant->setType(known->isNone() ? node->output()->type() : constant->type());
      node->output()->replaceAllUsesWith(constant);
    }
  });
  torch::jit::ConstantPropagationImmutableTypes(graph);
  torch::jit::EliminateDeadCode(graph->block());
}

} // namespace offload
