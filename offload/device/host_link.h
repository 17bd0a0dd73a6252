#pragma once

#include <memory>

#include <offload/core/link.h>

namespace offload {

/// A link from one place in host memory to another, for a host that is its own device: one thread copies in order,
/// beside the thread that computes. What a lane has enqueued is done when the call that enqueued it returns.
std::unique_ptr<Link> make_host_link();

} // namespace offload
