#pragma once

#include <c10/core/Device.h>

#include <cstdint>

namespace offload {

/// Makes the libraries that models use on `device` take what they take once for a process: kernels, and a handle for
/// the first thread that calls. So what is free before the first module of a process does not shrink by that later.
void prepare_device(c10::Device device);

/// What is in use on `device`, now, and neither in PyTorch's allocator nor in modules of this process: CUDA's context,
/// kernels, handles of libraries, what the program has allocated by itself, and other processes. 0 for a host, and
/// where the driver or the allocator does not say.
std::uint64_t outside_bytes(c10::Device device);

} // namespace offload
