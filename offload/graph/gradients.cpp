#include <offload/graph/gradients.h>

#include <torch/csrc/jit/ir/constants.h>

#include <algorithm>
#include <string>

#include <offload/graph/attributes.h>
#include <offload/graph/operators.h>

namespace offload {

using torch::jit::Graph;
using torch::jit::Node;
namespace prim = torch::jit::prim;

namespace {

const c10::Symbol kSetGradEnabled = c10::Symbol::fromQualString("aten::set_grad_enabled");

/// `with` this class turns gradients off, or has nothing to do with them.
bool is_known_not_to_enable(const c10::TypePtr& type) {
  const std::string name = type->annotation_str();
  return name == "__torch__.torch.autograd.grad_mode.no_grad" || name == "__torch__.torch.amp.autocast_mode.autocast" ||
         name == "__torch__.torch.autograd.profiler.record_function";
}

} // namespace

bool differentiates(const Node* node) { return is_one_of(node, {"aten::grad", "aten::backward", "aten::_backward"}); }

Differentiates differentiates(Graph& graph) {
  Differentiates found = Differentiates::never;
  for_each_node(graph.block(), [&](const Node* node) {
    if (differentiates(node)) {
      const bool always = node->owningBlock() == graph.block();
      found = std::max(found, always ? Differentiates::always : Differentiates::perhaps);
    }
  });
  return found;
}

Gradients gradients_of(Graph& graph, Gradients wanted) {
  return differentiates(graph) == Differentiates::never ? Gradients::off : wanted;
}

bool sets_gradients(Graph& graph) {
  return any_node(graph.block(),
                  [](const Node* node) { return node->kind() == prim::Enter || node->kind() == kSetGradEnabled; });
}

bool enables_gradients(Graph& graph) {
  return any_node(graph.block(), [](const Node* node) {
    if (node->kind() == prim::Enter) {
      return !is_known_not_to_enable(node->input(0)->type());
    }
    if (node->kind() != kSetGradEnabled) {
      return false;
    }
    const auto on = torch::jit::toIValue(node->input(0));
    const bool as_before = node->input(0)->node()->kind() == kIsGradEnabled;
    return !as_before && (!on || on->toBool());
  });
}

} // namespace offload
