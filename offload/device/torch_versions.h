#pragma once

// What differs between the versions of LibTorch that this builds with; ForwardingAllocator, which overrides every
// function of an interface of PyTorch, asks for them, too. docs/torch.md lists what is used.

#include <ATen/cuda/CUDAContextLight.h>
#include <c10/core/Allocator.h>
#include <c10/util/ThreadLocalDebugInfo.h>
#include <torch/headeronly/version.h>

#include <cstddef>
#include <cstdlib>
#include <sstream>
#include <string_view>
#include <utility>

static_assert(TORCH_VERSION_MAJOR == 2 && TORCH_VERSION_MINOR >= 11 && TORCH_VERSION_MINOR <= 15,
              "functions that PyTorch adds have to be forwarded first: see docs/torch.md");
#define OFFLOAD_TORCH_MINOR TORCH_VERSION_MINOR

namespace offload {

/// Slots of c10::ThreadLocalDebugInfo that nobody else uses. Since 2.13 anybody may make one; before, these are two
/// that PyTorch has for others and does not use itself.
#if OFFLOAD_TORCH_MINOR >= 13
inline constexpr std::string_view kMemoryScopeName = "offload::MemoryScope";
inline constexpr c10::DebugInfoKind kMemoryScopeSlot(&kMemoryScopeName);
inline constexpr std::string_view kCallScopeName = "offload::CallScope";
inline constexpr c10::DebugInfoKind kCallScopeSlot(&kCallScopeName);
#else
inline constexpr auto kMemoryScopeSlot = c10::DebugInfoKind::INFERENCE_CONTEXT;
inline constexpr auto kCallScopeSlot = c10::DebugInfoKind::TEST_INFO_2;
#endif

/// The address of an entry of PyTorch's maps of workspaces; since 2.13 its size stands beside it.
inline void* workspace_address(const c10::DataPtr& workspace) { return workspace.get(); }
inline void* workspace_address(const std::pair<c10::DataPtr, std::size_t>& workspace) { return workspace.first.get(); }

/// Whether a handle of cuBLAS keeps its workspace for the next product: since 2.15 only where somebody asks for it.
inline bool keeps_workspaces() {
#if OFFLOAD_TORCH_MINOR >= 15
  return at::cuda::isCUDABlasWorkspaceCachingEnabled();
#else
  return true;
#endif
}

/// The handle of cuBLAS that this thread has for the current device. Since 2.12 none of its workspaces is made for it.
inline cublasHandle_t blas_handle() {
#if OFFLOAD_TORCH_MINOR >= 12
  return at::cuda::getCurrentCUDABlasHandle(false);
#else
  return at::cuda::getCurrentCUDABlasHandle();
#endif
}

/// Bytes of the workspace that PyTorch has for cuBLAS, for a handle and a stream on the current device. 2.12 declares
/// the function that says so and does not export it: there it is what that reads from CUBLAS_WORKSPACE_CONFIG, pairs of
/// KiB and a count as in ":4096:2:16:8", or its defaults.
inline std::size_t blas_workspace_bytes() {
#if OFFLOAD_TORCH_MINOR == 12
  std::size_t bytes = 0;
  const char* const given = std::getenv("CUBLAS_WORKSPACE_CONFIG");
  std::istringstream pairs(given ? given : "");
  char before_size = 0;
  char before_count = 0;
  for (std::size_t size = 0, count = 0; pairs >> before_size >> size >> before_count >> count;) {
    bytes += size * count * 1024;
  }
  const cudaDeviceProp* device = at::cuda::getCurrentDeviceProperties();
  const bool is_large = device->major >= 9 && device->major < 12 && device->minor == 0;
  return bytes > 0 ? bytes : is_large ? 4096 * 8 * 1024 : 4096 * 2 * 1024 + 16 * 8 * 1024;
#else
  return at::cuda::getChosenWorkspaceSize();
#endif
}

} // namespace offload
