#pragma once

#include <c10/core/Allocator.h>
#include <cuda_runtime_api.h>

#include <array>
#include <cstddef>
#include <cstdint>

#include <offload/stream/pool.h>

namespace offload {

/// The workspaces of cuBLAS and cuBLASLt that one lane has. PyTorch keeps them in two maps by handle and stream, and
/// handles belong to threads. During a call ours stand there; the caller's, for the same handle and stream, come back
/// at its end.
class CudaWorkspaces {
 public:
  static constexpr std::size_t kKinds = 2; ///< cuBLAS, cuBLASLt
  using Wanted = std::array<bool, kKinds>;

  /// Of a thread that has just begun a call on `stream`, with the lane's `pool` in use.
  void bring(cudaStream_t stream, const Wanted& wanted, const Pool& pool);

  /// At the end of that call. What it wanted for the first time is ours as well.
  void take_back(cudaStream_t stream, const Pool& pool);

  /// Those that there are between calls.
  Wanted had() const { return {static_cast<bool>(ours_[0]), static_cast<bool>(ours_[1])}; }

  static std::size_t bytes_of(std::size_t kind);

  /// Between calls.
  void drop();

 private:
  std::uint64_t thread_ = 0; // whose handle it is
  void* handle_ = nullptr;
  std::array<at::DataPtr, kKinds> ours_;
  std::array<at::DataPtr, kKinds> callers_; // during a call
};

} // namespace offload
