#pragma once

#include <memory>

#include <offload/core/link.h>

namespace offload {

class CudaCalls;

/// The link to a CUDA device: a private copy stream beside the streams of the calls. Waits are events on streams; only
/// synchronize() blocks the host.
std::unique_ptr<Link> make_cuda_link(int device, std::shared_ptr<const CudaCalls> calls);

} // namespace offload
