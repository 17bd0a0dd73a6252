#include <offload/graph/gradients.h>

#include <torch/csrc/jit/ir/constants.h>

#include <algorithm>
#include <string>

#include <offload/graph/attributes.h>
#include <offload/tensor/values.h>

namespace offload {

using torch::jit::Graph;
using torch::jit::Node;
namespace prim = torch::jit::prim;

namespace {

const c10::Symbol kSetGradEnabled = c10::Symbol::fromQualString("aten::set_grad_enabled");
const c10::Symbol kIsGradEnabled = c10::Symbol::fromQualString("aten::is_grad_enabled");

/// `with` this class turns gradients off, or has nothing to do with them.
bool is_known_not_to_enable(const c10::TypePtr& type) {
  const std::string name = type->annotation_str();
  return name == "__torch__.torch.autograd.grad_mode.no_grad" || name == "__torch__.torch.amp.autocast_mode.autocast" ||
         name == "__torch__.torch.autograd.profiler.record_function";
}

const std::unordered_set<c10::Symbol> kDifferentiate = {c10::Symbol::fromQualString("aten::grad"),
                                                        c10::Symbol::fromQualString("aten::backward"),
                                                        c10::Symbol::fromQualString("aten::_backward")};

} // namespace

bool differentiates(const Node* node) { return kDifferentiate.count(node->kind()) > 0; }

Differentiates differentiates(Graph& graph) {
  Differentiates found = Differentiates::never;
  for_each_node(graph.block(), [&](const Node* node) {
    if (differentiates(node)) {
      const bool always = node->owningBlock() == graph.block() || found == Differentiates::always;
      found = always ? Differentiates::always : Differentiates::perhaps;
    }
  });
  return found;
}

bool sets_gradients(Graph& graph) {
  bool sets = false;
  for_each_node(graph.block(), [&](const Node* node) {
    sets = sets || node->kind() == prim::Enter || node->kind() == kSetGradEnabled;
  });
  return sets;
}

bool enables_gradients(Graph& graph) {
  bool enables = false;
  for_each_node(graph.block(), [&](const Node* node) {
    if (node->kind() == prim::Enter) {
      enables = enables || !is_known_not_to_enable(node->input(0)->type());
    } else if (node->kind() == kSetGradEnabled) {
      const auto on = torch::jit::toIValue(node->input(0));
      const bool as_before = node->input(0)->node()->kind() == kIsGradEnabled;
      enables = enables || (!as_before && (!on || on->toBool()));
    }
  });
  return enables;
}

GradientBoundary::GradientBoundary(const std::vector<c10::IValue>& inputs) : cuts_(true) {
  for (const c10::IValue& input : inputs) {
    if (input.isObject()) { // it holds weights
      continue;
    }
    visit_tensors("", input, [&](const std::string&, const at::Tensor& tensor) {
      given_.push_back(tensor);
      addresses_.insert(tensor.unsafeGetTensorImpl());
    });
  }
}

at::Tensor GradientBoundary::detach(const at::Tensor& tensor) const {
  if (!cuts_ || !tensor.requires_grad() || addresses_.count(tensor.unsafeGetTensorImpl()) > 0) {
    return tensor;
  }
  const bool has_graph = tensor.grad_fn() || (tensor.is_view() && tensor._base().grad_fn());
  return has_graph ? tensor.detach() : tensor;
}

} // namespace offload
