#include <offload/graph/reference.h>

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>

#include <offload/graph/gradients.h>
#include <offload/graph/method_code.h>
#include <offload/graph/prepare.h>
#include <offload/graph/rewrite_devices.h>
#include <offload/graph/weights.h>
#include <offload/tensor/values.h>

namespace offload {

Reference::Reference(torch::jit::Module module, c10::Device device, DeviceConstants constants, Gradients gradients)
    : module_(std::move(module)), device_(device), constants_(constants), gradients_(gradients) {
  replace_tensors({module_._ivalue()}, [&](const at::Tensor& tensor) { return moved(tensor); });
  moved_.clear(); // constants of graphs have storages of their own
}

/// As torch::jit::load(path, device) does: storage by storage, so that views of one storage stay that.
at::Tensor Reference::moved(const at::Tensor& tensor) {
  if (!is_weight_like(tensor) || tensor.device() == device_) {
    return tensor.is_meta() ? tensor : tensor.to(device_);
  }
  auto& [from, to] = moved_[tensor.storage().unsafeGetStorageImpl()];
  if (!to) {
    from = tensor.storage();
    const auto bytes = static_cast<std::int64_t>(tensor.storage().nbytes());
    const at::Tensor all =
        at::empty({0}, at::TensorOptions(at::kByte).device(tensor.device())).set_(tensor.storage(), 0, {bytes}, {1});
    to = all.to(device_).storage();
  }
  return tensor_on(to, tensor);
}

c10::IValue Reference::run(const std::string& method, std::vector<c10::IValue> inputs,
                           const std::unordered_map<std::string, c10::IValue>& kwargs) {
  auto code = codes_.find(method);
  if (code == codes_.end()) {
    const auto graph = prepare_method(module_, method);
    if (constants_ == DeviceConstants::rewrite) {
      std::vector<std::string> rewritten;
      rewrite_devices(graph, device_, [&](const at::Tensor& tensor) { return moved(tensor); }, rewritten);
    }
    const Gradients mode = gradients_of(*graph, gradients_);
    code = codes_.emplace(method, std::pair(torch::jit::Code(graph, method), mode)).first;
  }
  std::vector<c10::IValue> stack = {module_._ivalue()};
  stack.insert(stack.end(), inputs.begin(), inputs.end());
  module_.get_method(method).function().getSchema().checkAndNormalizeInputs(stack, kwargs);
  const auto& [compiled, mode] = code->second;
  return run_code(compiled, std::move(stack), mode == Gradients::callers && at::GradMode::is_enabled());
}

} // namespace offload
