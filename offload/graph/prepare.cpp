#include <offload/graph/prepare.h>

#include <torch/csrc/jit/api/function_impl.h>
#include <torch/csrc/jit/ir/constants.h>
#include <torch/csrc/jit/passes/autocast.h>
#include <torch/csrc/jit/passes/constant_propagation.h>
#include <torch/csrc/jit/passes/dead_code_elimination.h>

#include <offload/graph/gradients.h>
#include <offload/graph/inline_calls.h>
#include <offload/tensor/plain_modes.h>
#include <offload/tensor/values.h>

namespace offload {

using torch::jit::Graph;
namespace prim = torch::jit::prim;

std::shared_ptr<Graph> prepare_method(const torch::jit::Module& module, const std::string& method) {
  const PlainModes plain; // autocast of whoever asks would be cast into the graph for good
  auto& function = torch::jit::toGraphFunction(module.get_method(method).function());
  auto graph = function.graph()->copy();
  inline_calls(graph, module);
  torch::jit::Autocast(graph);
  return graph;
}

void fold_attributes(std::shared_ptr<Graph>& graph, const Holders& holders, const AttributeNames& written,
                     Gradients gradients) {
  const Attributes attributes(*graph, holders, written);
  const bool always_off = gradients == Gradients::off && !sets_gradients(*graph);
  for_each_node(graph->block(), [&](torch::jit::Node* node) {
    std::optional<c10::IValue> known;
    if (node->kind() == prim::GetAttr) {
      const c10::IValue* value = attributes.value_of(node->output());
      const bool is_simple =
          value && (value->isBool() || value->isInt() || value->isDouble() || value->isString() || value->isNone());
      if (is_simple && written.count(attribute_of(node)) == 0) {
        known = *value;
      }
    } else if (node->kind() == kIsGradEnabled && always_off) {
      known = false;
    } else if (node->kind() == prim::requires_grad) {
      // Of a parameter, this is what it was made with; of anything computed without gradients it is left to the run.
      const c10::IValue* value = attributes.value_of(node->input(0));
      if (value && value->isTensor()) {
        known = value->toTensor().requires_grad();
      }
    }
    if (known) {
      const torch::jit::WithInsertPoint at(node);
      torch::jit::Value* constant = graph->insertConstant(*known, node->sourceRange());
      constant->setType(known->isNone() ? node->output()->type() : constant->type());
      node->output()->replaceAllUsesWith(constant);
    }
  });
  torch::jit::ConstantPropagationImmutableTypes(graph);
  torch::jit::EliminateDeadCode(graph->block());
}

} // namespace offload
