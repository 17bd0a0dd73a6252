#include <offload/runtime/state.h>

#include <ATen/ops/empty.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <unordered_map>

#include <offload/tensor/values.h>
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

using Range = std::pair<std::uint64_t, std::uint64_t>; // first and last byte (exclusive)

/// Some bytes of the storage of a tensor, where they lie.
at::Tensor bytes_of(const at::Tensor& tensor, const Range& range) {
  const auto [begin, end] = range;
  return at::empty({0}, at::TensorOptions(at::kByte).device(tensor.device()))
      .set_(tensor.storage(), static_cast<std::int64_t>(begin), {static_cast<std::int64_t>(end - begin)}, {1});
}

/// Those that it spans: they may be written whatever its strides.
at::Tensor bytes_of(const at::Tensor& tensor) { return bytes_of(tensor, byte_range(tensor)); }

} // namespace

std::vector<at::Tensor> copy_together(
    const std::vector<at::Tensor>& tensors,
    const std::function<std::vector<at::Tensor>(const std::vector<at::Tensor>& bytes)>& copy) {
  std::unordered_map<const c10::StorageImpl*, std::size_t> numbers; // of storages
  std::vector<std::pair<at::Tensor, Range>> spans;                  // by number: one that lies there, and all of them
  for (const at::Tensor& tensor : tensors) {
    const auto [begin, end] = byte_range(tensor);
    const Range range(begin / kAlignment * kAlignment, end);
    const auto [known, is_new] = numbers.emplace(tensor.storage().unsafeGetStorageImpl(), spans.size());
    if (is_new) {
      spans.emplace_back(tensor, range);
    } else {
      Range& span = spans[known->second].second;
      span = {std::min(span.first, range.first), std::max(span.second, range.second)};
    }
  }
  std::vector<at::Tensor> bytes;
  for (const auto& [tensor, span] : spans) {
    bytes.push_back(bytes_of(tensor, span));
  }
  const std::vector<at::Tensor> copies = copy(bytes);
  std::vector<at::Tensor> same;
  for (const at::Tensor& tensor : tensors) {
    const std::size_t number = numbers.at(tensor.storage().unsafeGetStorageImpl());
    same.push_back(tensor_on(copies[number].storage(), tensor.is_leaf() ? tensor : tensor.detach(),
                             static_cast<std::int64_t>(spans[number].second.first)));
  }
  return same;
}

StateSnapshot::StateSnapshot(const Holders& holders, const std::function<bool(const at::Tensor&)>& never_written) {
  for (const c10::IValue& holder : holders) {
    visit_objects(holder, [&](const c10::IValue& object) {
      const auto& slots = object.toObjectRef().slots();
      slots_.emplace_back(object, std::vector<c10::IValue>(slots.begin(), slots.end()));
    });
    visit_containers(holder,
                     [&](const c10::IValue& container) { containers_.emplace_back(container, copy_of(container)); });
    visit_tensors("", holder, [&](const std::string&, const at::Tensor& tensor) {
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
  const c10::InferenceMode writes_what_has_no_version;
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
