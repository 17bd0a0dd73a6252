#pragma once

#include <cuda_runtime_api.h>

namespace offload {

/// Keeps `stream` busy for about `microseconds`.
void spin(cudaStream_t stream, double microseconds);

} // namespace offload
