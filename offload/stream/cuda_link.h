#pragma once

#include <cuda_runtime_api.h>

#include <memory>
#include <vector>

#include <offload/stream/link.h>

namespace offload {

/// The link to a CUDA device: a private copy stream beside the compute streams of the lanes, which outlive the link.
/// Waits are events on streams; only synchronize() blocks the host.
std::unique_ptr<Link> make_cuda_link(int device, std::vector<cudaStream_t> lanes);

/// Throws Error with what CUDA says about `code` in `doing`, and clears it so that it is not found again by others.
void check_cuda(cudaError_t code, const char* doing);

} // namespace offload
