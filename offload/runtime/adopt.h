#pragma once

#include <functional>
#include <memory>

#include <offload/device/lane_gate.h>
#include <offload/device/memory.h>
#include <offload/runtime/displaced.h>
#include <offload/runtime/engine.h>
#include <offload/runtime/executor.h>
#include <offload/runtime/model.h>
#include <offload/runtime/placed_module.h>

namespace offload {

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
/// left with placeholders, which `displaced` can undo. Calls work on a copy of its objects.
std::unique_ptr<Adopted> adopt_weights(Model& model, std::shared_ptr<LaneGate> gate, Owner owner,
                                       const std::function<void(std::uint64_t, std::uint64_t)>& progress,
                                       Displaced& displaced);

} // namespace offload
