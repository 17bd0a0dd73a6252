#include <offload/runtime/adopt.h>

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <c10/cuda/CUDAGuard.h>

#include <algorithm>

#include <offload/feed/stores.h>
#include <offload/load/file_bytes.h>
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

std::unique_ptr<Adopted> adopt_weights(Model& model, std::shared_ptr<LaneGate> gate, Owner owner,
                                       const std::function<void(std::uint64_t, std::uint64_t)>& progress,
                                       Displaced& displaced) {
  const PlainModes plain;
  auto adopted = std::make_unique<Adopted>();
  const auto kind = [&](WeightId id) { return model.weight(id).source.kind; };
  std::optional<c10::cuda::CUDAGuard> guard;
  if (model.device.is_cuda()) {
    guard.emplace(model.device);
    adopted->fixed = DeviceMemory(model.device.index(), model.ranges_bytes, "small weights and buffers");
  }
  auto& weights = model.program.weights.weights;
  Engine::Config config;
  config.device = model.device;
  config.lanes = model.lanes;
  config.gate = std::move(gate);
  config.weights = model.weights;
  config.lender = std::make_shared<WeightLender>(model.device, model.weights);
  config.storages.resize(weights.size());
  std::uint64_t to_move = 0;
  std::uint64_t moved = 0;
  for (WeightId id = 0; id < weights.size(); ++id) {
    if (kind(id) == Source::Kind::file) {
      config.file = model.file;
      config.maps_file = model.maps_file;
    } else {
      to_move += weights[id].bytes();
    }
    if (kind(id) == Source::Kind::module) {
      config.storages[id] = weights[id].storage;
    }
  }
  config.host = std::make_shared<HostMemory>(model.host.in_memory - model.host.in_module);
  config.pinned = model.host.pinned_weights;

  std::vector<std::vector<at::Tensor>> placeholders(weights.size());
  std::vector<c10::Storage> placeholder_storages;
  for (WeightId id = 0; id < weights.size(); ++id) {
    placeholder_storages.push_back(
        make_placeholder(config.lender, id, weights[id].name, weights[id].bytes(), model.device));
  }
  const auto placeholder_for = [&](WeightId id, const at::Tensor& tensor) {
    return tensor_on(placeholder_storages[id], tensor, static_cast<std::int64_t>(weights[id].begin));
  };
  if (owner == Owner::sole) {
    model.program.replace_constants([&](const at::Tensor& constant) {
      const auto id = model.program.weights.find(constant);
      return id ? placeholder_for(*id, constant) : constant;
    });
  }
  displaced.replace(model.program.holders, [&](const at::Tensor& tensor) {
    const WeightId id = model.program.weights.id_of(tensor);
    at::Tensor placeholder = placeholder_for(id, tensor);
    if (model.weight(id).bytes > 0) {
      placeholders[id].push_back(placeholder);
    }
    return placeholder;
  });
  std::vector<c10::Storage> storages(weights.size()); // of what stays
  std::uint64_t fixed_end = 0;
  std::optional<FileReader> reader;
  if (model.file) {
    reader.emplace(model.file, make_disk(model.file, FileReader::kReadsInFlight));
  }
  for (WeightId id = 0; id < weights.size(); ++id) {
    Weight& weight = weights[id];
    const std::uint64_t bytes = weight.bytes();
    const std::uint64_t place_bytes = model.weight(id).bytes;
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
    std::byte* place = goes_to_memory ? config.host->data() + model.weight(id).source.offset : nullptr;
    if (goes_to_memory && on_file) {
      config.file = model.file;
      config.to_fill.push_back({place, on_file->offset + weight.begin, bytes});
    } else if (goes_to_memory) {
      read_into(place);
      if (bytes == weight.storage.nbytes()) {
        displaced.free_bytes(weight.storage, config.host, place);
      }
    } else if (place_bytes == 0 && (model.device.is_cuda() || on_file)) {
      at::Tensor own = at::empty({static_cast<std::int64_t>(bytes)}, at::kByte);
      read_into(static_cast<std::byte*>(own.mutable_data_ptr()));
      storages[id] = own.storage();
      if (model.device.is_cuda()) {
        storages[id] = c10::Storage(c10::Storage::use_byte_size_t(), bytes,
                                    at::DataPtr(adopted->fixed.data() + fixed_end, model.device));
        bytes_tensor(storages[id], 0, bytes).copy_(own);
        fixed_end += align_up(bytes, kAlignment);
      }
    }
    const bool from_file = on_file && place_bytes > 0;
    weight.storage = c10::Storage();
    if (progress && !from_file) { // what comes from the file is reported when it has come
      progress(moved += bytes, to_move);
    }
  }
  std::unordered_map<const void*, at::Tensor> staying; // by placeholder
  for (const auto& [placeholder, tensor] : displaced.tensors()) {
    const WeightId id = placeholder_record(placeholder)->weight;
    if (model.weight(id).bytes == 0) {
      staying[placeholder.unsafeGetTensorImpl()] =
          storages[id] ? tensor_on(storages[id], tensor, static_cast<std::int64_t>(weights[id].begin)) : tensor;
    }
  }
  for (c10::IValue& holder : model.program.holders) {
    holder = map_tensors(
        holder,
        [&](const at::Tensor& tensor) {
          const auto stays = staying.find(tensor.unsafeGetTensorImpl());
          return stays != staying.end() ? stays->second : placeholder_record(tensor) ? tensor : tensor.to(model.device);
        },
        [](const c10::IValue&) { return false; });
  }

  std::sort(config.to_fill.begin(), config.to_fill.end(),
            [](const HostFill::Part& a, const HostFill::Part& b) { return a.place < b.place; });
  if (progress && to_move == 0) {
    progress(0, 0);
  }
  if (progress) {
    config.on_progress = [progress, moved, to_move](std::uint64_t bytes) mutable { progress(moved += bytes, to_move); };
  }
  if (model.host.staging > 0) {
    config.staging = HostMemory(model.host.staging);
    std::fill_n(config.staging.data(), config.staging.bytes(), std::byte{0});
    config.staging.pin(config.staging.bytes());
  }
  adopted->engine = std::make_unique<Engine>(std::move(config));
  adopted->placed =
      std::make_unique<PlacedModule>(model.program, *adopted->engine, model.weights, std::move(placeholders));
  adopted->executor =
      std::make_unique<Executor>(model.program, *adopted->engine, *adopted->placed, adopted->fixed, model.device);
  return adopted;
}

} // namespace offload
