#pragma once

#include <functional>

namespace offload {

/// Runs `work` on many threads at once, the calling one among them, and returns when all are done with it. `work` and
/// the team throw nothing.
using Team = std::function<void(const std::function<void()>& work)>;

} // namespace offload
