#include <offload/state.h>

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>

#include <offload/graph/values.h>
#include <ops/lease.h>

namespace offload {

c10::IValue copy_of(const c10::IValue& container) {
  return container.isGenericDict() ? c10::IValue(container.toGenericDict().copy())
                                   : c10::IValue(container.toList().copy());
}

void refill(const c10::IValue& container, const c10::IValue& before) {
  if (container.isGenericDict()) {
    auto dict = container.toGenericDict();
    dict.clear();
    for (const auto& entry : before.toGenericDict()) {
      dict.insert(entry.key(), entry.value());
    }
    return;
  }
  auto list = container.toList();
  list.clear();
  list.append(before.toList());
}

namespace {

/// The bytes that a tensor spans, where they lie: they may be written whatever its strides.
at::Tensor bytes_of(const at::Tensor& tensor) {
  const auto [begin, end] = byte_range(tensor);
  return at::empty({0}, at::TensorOptions(at::kByte).device(tensor.device()))
      .set_(tensor.storage(), static_cast<std::int64_t>(begin), {static_cast<std::int64_t>(end - begin)}, {1});
}

} // namespace

StateSnapshot::StateSnapshot(const Holders& holders, const std::function<bool(const at::Tensor&)>& never_written) {
  for (const torch::jit::Module& holder : holders) {
    visit_objects(holder._ivalue(), [&](const c10::IValue& object) {
      const auto& slots = object.toObjectRef().slots();
      slots_.emplace_back(object, std::vector<c10::IValue>(slots.begin(), slots.end()));
    });
    visit_containers(holder._ivalue(),
                     [&](const c10::IValue& container) { containers_.emplace_back(container, copy_of(container)); });
    visit_tensors("", holder._ivalue(), [&](const std::string&, const at::Tensor& tensor) {
      if (!tensor.defined() || placeholder_record(tensor) || never_written(tensor)) {
        return;
      }
      const at::Tensor before = tensor.detach();
      values_.push_back({tensor, before, is_weight_like(tensor) ? bytes_of(before).clone() : before.clone()});
      if (tensor.is_leaf() && tensor.requires_grad()) {
        gradients_.emplace_back(tensor, tensor.grad().defined() ? tensor.grad().detach().clone() : at::Tensor());
      }
    });
  }
}

void StateSnapshot::restore() const {
  const at::NoGradGuard no_grad;
  for (const auto& [tensor, before, copy] : values_) {
    const bool is_bytes = is_weight_like(before);
    (is_bytes ? bytes_of(before) : before).copy_(copy);
    const bool same = tensor.is_alias_of(before) && tensor.sizes() == before.sizes() &&
                      tensor.strides() == before.strides() && tensor.storage_offset() == before.storage_offset();
    if (is_bytes && !same) {
      tensor.set_(before.storage(), before.storage_offset(), before.sizes(), before.strides());
    }
  }
  for (const auto& [tensor, gradient] : gradients_) {
    tensor.mutable_grad() = gradient;
  }
  for (const auto& [container, before] : containers_) {
    refill(container, before);
  }
  for (const auto& [object, slots] : slots_) {
    for (std::size_t i = 0; i < slots.size(); ++i) {
      object.toObject()->setSlot(i, slots[i]);
    }
  }
}

} // namespace offload
