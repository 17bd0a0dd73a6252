#include <offload/runtime/state.h>

#include <ATen/ops/empty.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <mutex>
#include <unordered_map>

#include <offload/error.h>
#include <offload/tensor/values.h>
#include <ops/lease.h>

namespace offload {

at::Tensor bytes_tensor(const c10::Storage& storage, std::uint64_t begin, std::uint64_t end) {
  return at::empty({0}, at::TensorOptions(at::kByte).device(storage.device()))
      .set_(storage, static_cast<std::int64_t>(begin), {static_cast<std::int64_t>(end - begin)}, {1});
}

std::vector<at::Tensor> copy_together(
    const std::vector<at::Tensor>& tensors,
    const std::function<std::vector<at::Tensor>(const std::vector<at::Tensor>& bytes)>& copy) {
  struct Span {
    c10::Storage storage;
    std::uint64_t begin;
    std::uint64_t end;
  };
  std::unordered_map<const c10::StorageImpl*, std::size_t> numbers; // of storages
  std::vector<Span> spans;                                          // by number: of all that lie there
  for (const at::Tensor& tensor : tensors) {
    const auto [first, end] = byte_range(tensor);
    const std::uint64_t begin = first / kAlignment * kAlignment;
    const auto [known, is_new] = numbers.emplace(tensor.storage().unsafeGetStorageImpl(), spans.size());
    if (is_new) {
      spans.push_back({tensor.storage(), begin, end});
    }
    Span& span = spans[known->second];
    span.begin = std::min(span.begin, begin);
    span.end = std::max(span.end, end);
  }
  std::vector<at::Tensor> bytes;
  for (const auto& [storage, begin, end] : spans) {
    bytes.push_back(bytes_tensor(storage, begin, end));
  }
  const std::vector<at::Tensor> copies = copy(bytes);
  std::vector<at::Tensor> same;
  for (const at::Tensor& tensor : tensors) {
    const std::size_t number = numbers.at(tensor.storage().unsafeGetStorageImpl());
    same.push_back(tensor_on(copies[number].storage(), tensor.is_leaf() ? tensor : tensor.detach(),
                             static_cast<std::int64_t>(spans[number].begin)));
  }
  return same;
}

namespace {

/// The bytes that a tensor spans: they may be written whatever its strides.
at::Tensor bytes_of(const at::Tensor& tensor) {
  const auto [begin, end] = byte_range(tensor);
  return bytes_tensor(tensor.storage(), begin, end);
}

void note_containers(const c10::IValue& value, Containers& containers) {
  visit_containers(value, [&](const c10::IValue& container) {
    containers.emplace_back(container, container.isGenericDict() ? c10::IValue(container.toGenericDict().copy())
                                                                 : c10::IValue(container.toList().copy()));
  });
}

void refill(const Containers& containers) {
  for (const auto& [container, before] : containers) {
    if (container.isGenericDict()) {
      auto dict = container.toGenericDict();
      dict.clear();
      for (const auto& entry : before.toGenericDict()) {
        dict.insert(entry.key(), entry.value());
      }
    } else {
      auto list = container.toList();
      list.clear();
      list.append(before.toList());
    }
  }
}

} // namespace

StateSnapshot::StateSnapshot(const Holders& holders, const std::function<bool(const at::Tensor&)>& never_written) {
  for (const c10::IValue& holder : holders) {
    visit_objects(holder, [&](const c10::IValue& object) {
      const auto& slots = object.toObjectRef().slots();
      slots_.emplace_back(object, std::vector<c10::IValue>(slots.begin(), slots.end()));
    });
    note_containers(holder, containers_);
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
  refill(containers_);
  for (const auto& [object, slots] : slots_) {
    for (std::size_t i = 0; i < slots.size(); ++i) {
      object.toObject()->setSlot(i, slots[i]);
    }
  }
}

Restart::Restart(const std::vector<c10::IValue>& arguments, std::optional<StateSnapshot> state,
                 const std::vector<at::Generator>& generators)
    : state_(std::move(state)) {
  for (const c10::IValue& argument : arguments) {
    visit_objects(argument, [&](const c10::IValue&) { has_objects_ = true; });
    visit_tensors("", argument, [&](const std::string&, const at::Tensor& tensor) {
      if (tensor.defined() && tensor.is_inference()) {
        copies_.emplace_back(tensor, tensor.clone());
      } else if (tensor.defined()) {
        versions_.emplace_back(tensor, tensor._version());
      }
    });
    note_containers(argument, containers_);
  }
  for (at::Generator generator : generators) {
    const std::lock_guard lock(generator.mutex());
    generators_.emplace_back(generator, generator.get_state());
  }
}

void Restart::restore() {
  refill(containers_);
  for (auto& [generator, before] : generators_) {
    const std::lock_guard lock(generator.mutex());
    generator.set_state(before);
  }
  if (state_) {
    state_->restore();
  }
  {
    const c10::InferenceMode writes_what_has_no_version;
    for (const auto& [tensor, before] : copies_) {
      tensor.copy_(before);
    }
  }
  const bool written = std::any_of(versions_.begin(), versions_.end(),
                                   [](const auto& seen) { return seen.first._version() != seen.second; });
  if (written || has_objects_) {
    throw Error(
        std::string("the call needed more memory than it could have, and ") +
        (written ? "had written to one of its arguments" : "may have written to an object among its arguments") +
        ": it can not be made again unseen. Name such a call in example_calls, or raise vram_budget");
  }
}

} // namespace offload
