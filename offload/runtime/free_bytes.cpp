#include <offload/runtime/free_bytes.h>

#include <c10/cuda/CUDAGuard.h>
#include <cuda_runtime_api.h>

#include <offload/core/host_limits.h>
#include <offload/device/cuda_calls.h>

namespace offload {

std::uint64_t free_bytes(c10::Device device) {
  if (device.is_cpu()) {
    return available_host_bytes();
  }
  std::size_t free = 0;
  std::size_t total = 0;
  const c10::cuda::CUDAGuard guard(device);
  check_cuda(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
  return free;
}

} // namespace offload
