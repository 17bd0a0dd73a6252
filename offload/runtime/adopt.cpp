#include <offload/runtime/adopt.h>

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <c10/core/DeviceGuard.h>

#include <algorithm>

#include <offload/load/file_bytes.h>
#include <offload/runtime/state.h>
#include <offload/tensor/plain_modes.h>
#include <offload/tensor/values.h>

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

namespace {

/// Reports what has been moved.
struct Progress {
  std::function<void(std::uint64_t, std::uint64_t)> report; ///< may be empty
  std::uint64_t to_move = 0;
  std::uint64_t moved = 0;

  void add(std::uint64_t bytes) {
    if (report) {
      report(moved += bytes, to_move);
    }
  }
};

/// What the engine works with, but for the bytes that have to be moved first.
Engine::Config make_config(const Model& model) {
  const auto& weights = model.program.weights.weights;
  Engine::Config config;
  config.lender = std::make_shared<WeightLender>(model.device, model.weights);
  config.storages.resize(weights.size());
  for (WeightId id = 0; id < weights.size(); ++id) {
    const Source::Kind kind = model.weight(id).source.kind;
    if (kind == Source::Kind::module) {
      config.storages[id] = weights[id].storage;
    } else if (kind == Source::Kind::file) {
      config.file = model.file;
      config.mapped = model.maps_file ? model.file : nullptr;
    }
  }
  config.host = std::make_shared<HostMemory>(model.host.in_memory - model.host.in_module);
  return config;
}

/// Puts placeholders in the place of all weights; those of planned ones, by weight.
Placeholders put_placeholders(Model& model, const std::shared_ptr<WeightLender>& lender, Owner owner,
                              Displaced& displaced) {
  const auto& weights = model.program.weights.weights;
  std::vector<c10::Storage> storages;
  for (WeightId id = 0; id < weights.size(); ++id) {
    storages.push_back(make_placeholder(lender, id, weights[id].name, weights[id].bytes(), model.device));
  }
  const auto placeholder_for = [&](WeightId id, const at::Tensor& tensor) {
    return tensor_on(storages[id], tensor, static_cast<std::int64_t>(weights[id].begin));
  };
  if (owner == Owner::sole) {
    model.program.replace_constants([&](const at::Tensor& constant) {
      const auto id = model.program.weights.find(constant);
      return id ? placeholder_for(*id, constant) : constant;
    });
  }
  Placeholders placeholders(weights.size());
  displaced.replace(model.program.holders, [&](const at::Tensor& tensor) {
    const WeightId id = model.program.weights.id_of(tensor);
    at::Tensor placeholder = placeholder_for(id, tensor);
    if (model.weight(id).bytes > 0) {
      placeholders[id].push_back(placeholder);
    }
    return placeholder;
  });
  return placeholders;
}

/// Moves all bytes to where they are to be, or notes what is to be filled. The storages of those that are fixed, by
/// weight.
std::vector<c10::Storage> move_bytes(Model& model, Engine::Config& config, DeviceMemory& fixed, Displaced& displaced,
                                     Progress& progress) {
  auto& weights = model.program.weights.weights;
  std::vector<c10::Storage> storages(weights.size());
  std::uint64_t fixed_end = 0;
  std::optional<FileReader> reader;
  if (model.file) {
    reader.emplace(model.file, make_disk(model.file, FileReader::kReadsInFlight));
  }
  for (WeightId id = 0; id < weights.size(); ++id) {
    Weight& weight = weights[id];
    const std::uint64_t bytes = weight.bytes();
    const FileBytes* on_file = file_bytes(weight.storage);
    const auto read_into = [&](std::byte* to) {
      if (on_file) {
        reader->read_all(to, on_file->offset + weight.begin, bytes);
      } else {
        at::from_blob(to, {static_cast<std::int64_t>(bytes)}, at::kByte)
            .copy_(bytes_tensor(weight.storage, weight.begin, weight.end));
      }
    };
    const WeightEntry& entry = model.weight(id);
    const bool stays = entry.bytes == 0 && (on_file || model.device.is_cuda()); // in memory of its own
    if (entry.bytes > 0 && entry.source.kind == Source::Kind::memory) {
      std::byte* place = config.host->data() + entry.source.offset;
      if (on_file) { // it is read beside the first calls
        config.file = model.file;
        config.to_fill.push_back({place, on_file->offset + weight.begin, bytes});
      } else {
        read_into(place);
        if (bytes == weight.storage.nbytes()) {
          displaced.free_bytes(weight.storage, config.host, place);
        }
      }
    } else if (stays) {
      at::Tensor own = at::empty({static_cast<std::int64_t>(bytes)}, at::kByte);
      read_into(static_cast<std::byte*>(own.mutable_data_ptr()));
      storages[id] = own.storage();
      if (model.device.is_cuda()) {
        storages[id] =
            c10::Storage(c10::Storage::use_byte_size_t(), bytes, at::DataPtr(fixed.data() + fixed_end, model.device));
        bytes_tensor(storages[id], 0, bytes).copy_(own);
        fixed_end += align_up(bytes, kAlignment);
      }
    } // else it is left where it is: on the file, or in the module
    const bool comes_later = on_file && !stays; // and is reported then
    weight.storage = c10::Storage();
    if (!comes_later) {
      progress.add(bytes);
    }
  }
  std::sort(config.to_fill.begin(), config.to_fill.end(),
            [](const HostFill::Part& a, const HostFill::Part& b) { return a.place < b.place; });
  return storages;
}

/// Makes the objects that calls work on: copies, in which what is no planned weight stands as it is, on the device.
void copy_holders(Model& model, const std::vector<c10::Storage>& fixed, const Displaced& displaced) {
  std::unordered_map<const void*, at::Tensor> staying; // by placeholder
  for (const auto& [placeholder, tensor] : displaced.tensors()) {
    const WeightId id = placeholder_record(placeholder)->weight;
    if (model.weight(id).bytes == 0) {
      const auto begin = static_cast<std::int64_t>(model.program.weights.weights[id].begin);
      staying[placeholder.unsafeGetTensorImpl()] = fixed[id] ? tensor_on(fixed[id], tensor, begin) : tensor;
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
}

} // namespace

std::unique_ptr<Adopted> adopt_weights(Model& model, Transport& transport, Owner owner,
                                       const std::function<void(std::uint64_t, std::uint64_t)>& report,
                                       Displaced& displaced) {
  const PlainModes plain;
  auto adopted = std::make_unique<Adopted>();
  const c10::DeviceGuard guard(model.device);
  if (model.device.is_cuda()) {
    adopted->fixed = DeviceMemory(model.device.index(), model.ranges_bytes, "small weights and buffers");
  }
  Engine::Config config = make_config(model);
  Placeholders placeholders = put_placeholders(model, config.lender, owner, displaced);
  Progress progress{report};
  for (WeightId id = 0; id < model.count(); ++id) {
    const bool stays_on_file = model.weight(id).source.kind == Source::Kind::file;
    progress.to_move += stays_on_file ? 0 : model.program.weights.weights[id].bytes();
  }
  const auto fixed = move_bytes(model, config, adopted->fixed, displaced, progress);
  copy_holders(model, fixed, displaced);
  if (progress.to_move == 0) {
    progress.add(0);
  }
  if (report) {
    config.on_progress = [progress](std::uint64_t bytes) mutable { progress.add(bytes); };
  }
  adopted->engine = std::make_unique<Engine>(model, transport, std::move(config));
  adopted->placed = std::make_unique<PlacedModule>(model, *adopted->engine, std::move(placeholders));
  adopted->executor = std::make_unique<Executor>(model, transport, *adopted->engine, *adopted->placed, adopted->fixed);
  return adopted;
}

} // namespace offload
