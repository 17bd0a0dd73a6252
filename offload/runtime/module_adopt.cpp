// How a module's weights are taken in; see module_impl.h.

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <c10/cuda/CUDAGuard.h>

#include <algorithm>

#include <offload/feed/stores.h>
#include <offload/graph/constants.h>
#include <offload/load/file_bytes.h>
#include <offload/runtime/module_impl.h>
#include <offload/tensor/plain_modes.h>
#include <offload/tensor/values.h>

namespace offload {

namespace {

/// The bytes of a weight as a tensor, whatever its dtype and device.
at::Tensor bytes_tensor(const c10::Storage& storage, std::uint64_t begin, std::uint64_t bytes) {
  return at::empty({0}, at::TensorOptions(at::kByte).device(storage.device()))
      .set_(storage, static_cast<std::int64_t>(begin), {static_cast<std::int64_t>(bytes)}, {1});
}

} // namespace

/// Moves the planned weights into the host store and what stays to the device. A weight is freed where it was as soon
/// as it has been moved, so that there is never more than one of them twice; a weight that is a part of its storage, or
/// that others have, when all is done. On the host it is used where it is. The module that was given is left with
/// placeholders; calls work on a copy of its objects, in which what stays stands as it is.
void Module::Impl::adopt_weights(Owner owner, const Progress& progress, Displaced& displaced) {
  const PlainModes plain;
  std::optional<c10::cuda::CUDAGuard> guard;
  if (device_.is_cuda()) {
    guard.emplace(device_);
    fixed_memory_ = DeviceMemory(device_.index(), ranges_bytes_, "small weights and buffers");
  }
  auto& weights = program_.weights.weights;
  Engine::Config config;
  config.device = device_;
  config.lanes = lanes_;
  config.gate = gate_;
  config.weights = weights_;
  config.lender = std::make_shared<WeightLender>(device_, weights_);
  config.storages.resize(weights.size());
  std::uint64_t to_move = 0;
  std::uint64_t moved = 0;
  for (WeightId id = 0; id < weights.size(); ++id) {
    if (kind(id) == Source::Kind::file) {
      config.file = file_;
      config.maps_file = device_.is_cpu() && maps_file_;
    } else {
      to_move += weights[id].bytes();
    }
    if (kind(id) == Source::Kind::module) {
      config.storages[id] = weights[id].storage;
    }
  }
  config.host = std::make_shared<HostMemory>(host_.in_memory - host_.in_module);
  config.pinned = host_.pinned_weights;

  std::unordered_map<WeightId, std::vector<torch::jit::Node*>> constants;
  if (owner == Owner::sole) {
    for (torch::jit::Node* node : large_constants(program_.holders.front())) {
      if (const auto id = program_.weights.find(node->t(torch::jit::attr::value))) {
        constants[*id].push_back(node);
      }
    }
  }
  std::vector<std::vector<at::Tensor>> placeholders(weights.size());
  std::vector<c10::Storage> placeholder_storages;
  for (WeightId id = 0; id < weights.size(); ++id) {
    placeholder_storages.push_back(make_placeholder(config.lender, id, weights[id].name, weights[id].bytes(), device_));
    for (torch::jit::Node* node : constants[id]) {
      const at::Tensor& constant = node->t(torch::jit::attr::value);
      node->t_(torch::jit::attr::value,
               tensor_on(placeholder_storages[id], constant, static_cast<std::int64_t>(weights[id].begin)));
    }
  }
  displaced.replace(program_.holders, [&](const at::Tensor& tensor) {
    const WeightId id = program_.weights.id_of(tensor);
    at::Tensor placeholder = tensor_on(placeholder_storages[id], tensor, static_cast<std::int64_t>(weights[id].begin));
    if (bytes(id) > 0) {
      placeholders[id].push_back(placeholder);
    }
    return placeholder;
  });
  std::vector<c10::Storage> storages(weights.size()); // of what stays
  std::uint64_t fixed_end = 0;
  std::optional<FileReader> reader;
  if (file_) {
    reader.emplace(file_, make_disk(file_, FileReader::kReadsInFlight));
  }
  for (WeightId id = 0; id < weights.size(); ++id) {
    Weight& weight = weights[id];
    const std::uint64_t bytes = weight.bytes();
    const std::uint64_t place_bytes = (*weights_)[id].bytes;
    const FileBytes* on_file = file_bytes(weight.storage);
    const auto read_into = [&](std::byte* to) {
      if (on_file) {
        reader->read_all(to, on_file->offset + weight.begin, bytes);
      } else {
        at::from_blob(to, {static_cast<std::int64_t>(bytes)}, at::kByte)
            .copy_(bytes_tensor(weight.storage, weight.begin, bytes));
      }
    };
    const bool goes_to_memory = place_bytes > 0 && kind(id) == Source::Kind::memory;
    std::byte* place = goes_to_memory ? config.host->data() + (*weights_)[id].source.offset : nullptr;
    if (goes_to_memory && on_file) {
      config.file = file_;
      config.to_fill.push_back({place, on_file->offset + weight.begin, bytes});
    } else if (goes_to_memory) {
      read_into(place);
      if (bytes == weight.storage.nbytes()) {
        displaced.free_bytes(weight.storage, config.host, place);
      }
    } else if (place_bytes == 0 && (device_.is_cuda() || on_file)) {
      at::Tensor own = at::empty({static_cast<std::int64_t>(bytes)}, at::kByte);
      read_into(static_cast<std::byte*>(own.mutable_data_ptr()));
      storages[id] = own.storage();
      if (device_.is_cuda()) {
        storages[id] = c10::Storage(c10::Storage::use_byte_size_t(), bytes,
                                    at::DataPtr(fixed_memory_.data() + fixed_end, device_));
        bytes_tensor(storages[id], 0, bytes).copy_(own);
        fixed_end += align_up(bytes, kAlignment);
      }
    }
    const bool from_file = on_file && place_bytes > 0;
    weight.storage = c10::Storage();
    if (progress && !from_file) { // what comes from the file tells it then
      progress(moved += bytes, to_move);
    }
  }
  std::unordered_map<const void*, at::Tensor> staying; // by placeholder
  for (const auto& [placeholder, tensor] : displaced.tensors()) {
    const WeightId id = placeholder_record(placeholder)->weight;
    if (bytes(id) == 0) {
      staying[placeholder.unsafeGetTensorImpl()] =
          storages[id] ? tensor_on(storages[id], tensor, static_cast<std::int64_t>(weights[id].begin)) : tensor;
    }
  }
  for (torch::jit::Module& holder : program_.holders) {
    const c10::IValue own = map_tensors(
        holder._ivalue(),
        [&](const at::Tensor& tensor) {
          const auto stays = staying.find(tensor.unsafeGetTensorImpl());
          return stays != staying.end() ? stays->second : placeholder_record(tensor) ? tensor : tensor.to(device_);
        },
        [](const c10::IValue&) { return false; });
    holder = torch::jit::Module(own.toObject());
  }

  std::sort(config.to_fill.begin(), config.to_fill.end(),
            [](const HostFill::Part& a, const HostFill::Part& b) { return a.place < b.place; });
  if (progress && to_move == 0) {
    progress(0, 0);
  }
  if (progress) {
    config.on_progress = [progress, moved, to_move](std::uint64_t bytes) mutable { progress(moved += bytes, to_move); };
  }
  if (host_.staging > 0) {
    config.staging = HostMemory(host_.staging);
    std::fill_n(config.staging.data(), config.staging.bytes(), std::byte{0});
    config.staging.pin(config.staging.bytes());
  }
  engine_ = std::make_unique<Engine>(std::move(config));
  placed_ = std::make_unique<PlacedModule>(program_, *engine_, weights_, std::move(placeholders));
  executor_ = std::make_unique<Executor>(program_, *engine_, *placed_, fixed_memory_, device_);
}

} // namespace offload
