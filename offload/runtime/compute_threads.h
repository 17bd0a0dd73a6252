#pragma once

#include <offload/core/team.h>

namespace offload {

/// The threads that operators compute with on the host. They spin for a while after each operator, so that threads of
/// ours beside them would only get what these lose.
Team compute_threads();

} // namespace offload
