#pragma once

#include <c10/core/Device.h>
#include <c10/util/ThreadLocalDebugInfo.h>
#include <cuda_runtime_api.h>

#include <memory>

#include <offload/device/lane_memory.h>

namespace offload {

/// Stands before PyTorch's allocator of CUDA memory, from the first use on for as long as the process lives. It serves
/// threads that compute a call of ours from the memory of the call's lane; everything else it passes on. (While a pool
/// of PyTorch's own is in use, nobody in the process can have cached memory freed: see offload/DESIGN.md.)
void install_cuda_allocator();

/// While this lives, what the thread allocates on `stream` of the device, and what autograd's threads allocate for it
/// there, comes from `memory`. The innermost one holds.
class MemoryScope {
 public:
  MemoryScope(std::shared_ptr<LaneMemory> memory, c10::Device device, cudaStream_t stream);

 private:
  const c10::DebugInfoGuard guard_;
};

/// Keeps `memory` for as long as the process knows addresses in it: what is allocated there may outlive its owner.
class KnownMemory {
 public:
  explicit KnownMemory(std::shared_ptr<LaneMemory> memory);
  ~KnownMemory();
  KnownMemory(const KnownMemory&) = delete;
  KnownMemory& operator=(const KnownMemory&) = delete;

 private:
  const std::shared_ptr<LaneMemory> memory_;
};

} // namespace offload
