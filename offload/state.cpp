#include <offload/state.h>

#include <ATen/core/grad_mode.h>

#include <offload/graph/values.h>
#include <ops/lease.h>

namespace offload {

StateSnapshot::StateSnapshot(const Holders& holders) {
  const auto keep = [](const at::Tensor& tensor) { return tensor; };
  // Containers are copied, with the same tensors in them; objects are what the slots belong to.
  const auto is_object = [](const c10::IValue& value) { return value.isObject(); };
  for (const torch::jit::Module& holder : holders) {
    visit_objects(holder._ivalue(), [&](const c10::IValue& object) {
      std::vector<c10::IValue> slots;
      for (const c10::IValue& slot : object.toObjectRef().slots()) {
        slots.push_back(slot.isObject() ? slot : map_tensors(slot, keep, is_object));
      }
      slots_.emplace_back(object, std::move(slots));
    });
    visit_tensors("", holder._ivalue(), [&](const std::string&, const at::Tensor& tensor) {
      if (tensor.defined() && !placeholder_record(tensor)) {
        values_.emplace_back(tensor, tensor.detach().clone());
        if (tensor.is_leaf() && tensor.requires_grad()) {
          gradients_.emplace_back(tensor, tensor.grad().defined() ? tensor.grad().detach().clone() : at::Tensor());
        }
      }
    });
  }
}

void StateSnapshot::restore() const {
  const at::NoGradGuard no_grad;
  for (const auto& [tensor, value] : values_) {
    tensor.copy_(value);
  }
  for (const auto& [tensor, gradient] : gradients_) {
    tensor.mutable_grad() = gradient;
  }
  for (const auto& [object, slots] : slots_) {
    for (std::size_t i = 0; i < slots.size(); ++i) {
      object.toObject()->setSlot(i, slots[i]);
    }
  }
}

} // namespace offload
