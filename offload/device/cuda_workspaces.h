#pragma once

#include <ATen/cuda/CUDAContextLight.h>
#include <cuda_runtime_api.h>

#include <array>
#include <cstddef>

#include <offload/device/lane_memory.h>
#include <offload/device/torch_versions.h>

namespace offload {

/// The workspaces of cuBLAS and cuBLASLt that one lane has. PyTorch keeps them in two maps by handle and stream, and
/// handles belong to threads. During a call ours stand there; the caller's, for the same handle and stream, come back
/// at its end, so that what a call takes does not depend on what its thread did before.
class CudaWorkspaces {
 public:
  static constexpr std::size_t kKinds = 2; ///< cuBLAS, cuBLASLt

  /// Of a thread that is about to begin a call on `stream`, with no lane's memory in use yet: finds the handle that it
  /// may have from work of its own. There is no asking without making one, nor, before 2.12, without a workspace for
  /// it: a new one is given back at once.
  static void find_handle(cudaStream_t stream);

  /// Of a thread that has just begun a call on `stream`, with the lane's `memory` in use. When they are `wanted`, those
  /// that are not there are taken from it first.
  void bring(cudaStream_t stream, bool wanted, const LaneMemory& memory);

  /// At the end of that call. What it wanted for the first time is ours as well.
  void take_back(cudaStream_t stream, const LaneMemory& memory);

  /// Whether there is one of that kind, between calls.
  bool has(std::size_t kind) const { return workspace_address(ours_[kind]) != nullptr; }

  static std::size_t bytes_of(std::size_t kind);

  /// Between calls.
  void drop() { ours_ = {}; }

 private:
  using Workspace = decltype(at::cuda::WorkspaceMapWithMutex::map)::mapped_type;

  void* handle_ = nullptr; // that ours are for
  std::array<Workspace, kKinds> ours_;
  std::array<Workspace, kKinds> callers_; // during a call
};

} // namespace offload
