#include <offload/runtime/gradient_boundary.h>

#include <string>

#include <offload/tensor/values.h>

namespace offload {

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
