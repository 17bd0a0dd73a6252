#include <offload/runtime/displaced.h>

#include <ATen/ops/from_blob.h>

#include <algorithm>

namespace offload {

void Displaced::replace(const Holders& holders, const std::function<at::Tensor(const at::Tensor&)>& placeholder) {
  holders_ = holders;
  std::unordered_map<const void*, at::Tensor> known;
  replace_tensors(holders_, [&](const at::Tensor& tensor) {
    if (!is_weight_like(tensor)) {
      return tensor;
    }
    at::Tensor& stands = known[tensor.unsafeGetTensorImpl()];
    if (!stands.defined()) {
      stands = placeholder(tensor);
      on_storage_[tensor.storage().unsafeGetStorageImpl()].push_back(tensors_.size());
      tensors_.emplace_back(stands, tensor);
    }
    return stands;
  });
}

void Displaced::free_bytes(const c10::Storage& storage, const std::shared_ptr<HostMemory>& memory, std::byte* place) {
  const auto& positions = on_storage_.at(storage.unsafeGetStorageImpl());
  const bool alone = storage.use_count() == positions.size() + 1 &&
                     std::all_of(positions.begin(), positions.end(),
                                 [this](std::size_t position) { return tensors_[position].second.use_count() == 1; });
  if (alone) {
    storage.set_data_ptr_noswap(at::DataPtr(nullptr, storage.device()));
    moved_.push_back({storage, memory, place});
  }
}

void Displaced::put_back() {
  for (const Moved& moved : moved_) {
    moved.memory->unpin();
    const std::uint64_t bytes = moved.storage.nbytes();
    const auto discard = [memory = moved.memory, place = moved.place, bytes](void*) { memory->discard(place, bytes); };
    const at::Tensor there =
        at::from_blob(moved.place, {static_cast<std::int64_t>(bytes)}, discard, at::kByte).to(moved.storage.device());
    moved.storage.set_data_ptr_noswap(there.storage().set_data_ptr(at::DataPtr()));
  }
  std::unordered_map<const void*, const at::Tensor*> stood;
  for (const auto& [placeholder, tensor] : tensors_) {
    stood[placeholder.unsafeGetTensorImpl()] = &tensor;
  }
  replace_tensors(holders_, [&](const at::Tensor& tensor) {
    const auto found = stood.find(tensor.unsafeGetTensorImpl());
    return found == stood.end() ? tensor : *found->second;
  });
}

} // namespace offload
