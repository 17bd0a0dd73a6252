#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <unordered_map>
#include <utility>
#include <vector>

#include <offload/device/memory.h>
#include <offload/graph/weights.h>
#include <offload/runtime/engine.h>
#include <offload/runtime/executor.h>
#include <offload/runtime/model.h>
#include <offload/runtime/placed_module.h>

namespace offload {

/// The weights that some modules had before placeholders were put in their place. They are kept until the new owner is
/// complete, and put back if that fails. Meanwhile their bytes lie in one place only, the old or the new one.
class Displaced {
 public:
  /// Puts `placeholder(tensor)` in the place of each weight, the same wherever the tensor stands.
  void replace(const Holders& holders, const std::function<at::Tensor(const at::Tensor&)>& placeholder);

  /// What stood there, each once: placeholder and weight.
  const std::vector<std::pair<at::Tensor, at::Tensor>>& tensors() const { return tensors_; }

  /// To be called when all bytes of `storage` lie at `place` in `memory` as well. Frees those of the storage, unless
  /// somebody else has it, or a tensor on it. The caller has `storage` itself and no other reference.
  void free_bytes(const c10::Storage& storage, const std::shared_ptr<HostMemory>& memory, std::byte* place);

  /// Puts all back as it was. Bytes that were freed stay where they are by now, if that is their device.
  void put_back();

 private:
  struct Moved {
    c10::Storage storage;
    std::shared_ptr<HostMemory> memory;
    std::byte* place;
  };

  Holders holders_;
  std::vector<std::pair<at::Tensor, at::Tensor>> tensors_;
  std::unordered_map<const void*, std::vector<std::size_t>> on_storage_; // positions
  std::vector<Moved> moved_;
};

/// What moves and runs a model whose weights have been adopted. Each member uses those before it, and is destroyed
/// first.
struct Adopted {
  DeviceMemory fixed; ///< what always stays on the device
  std::unique_ptr<Engine> engine;
  std::unique_ptr<PlacedModule> placed;
  std::unique_ptr<Executor> executor;
};

/// Whether others may hold a module of the same type, and run its methods: then constants stay in those.
enum class Owner { sole, shared };

/// Moves the planned weights into host memory, and what always stays to the device. On the host, weights are used where
/// they are. A weight is freed where it was as soon as it has been moved, so that only one at a time is there twice.
/// One that is a part of its storage, or that others have too, is freed when all is done. The module that was given is
/// left with placeholders, which `displaced` can undo. Calls work on a copy of its objects. `transport` outlives what
/// is returned.
std::unique_ptr<Adopted> adopt_weights(Model& model, Transport& transport, Owner owner,
                                       const std::function<void(std::uint64_t, std::uint64_t)>& progress,
                                       Displaced& displaced);

} // namespace offload
