#pragma once

#include <functional>

namespace offload {

/// Runs `work` on many threads at once, the calling one among them, and returns when all are done with it. `work` and
/// the team throw nothing.
using Team = std::function<void(const std::function<void()>& work)>;

/// The threads that operators compute with on the host. They spin for a while after each operator, so that threads of
/// ours beside them would only get what these lose.
Team compute_threads();

} // namespace offload
