#pragma once

#include <c10/util/ThreadLocalDebugInfo.h>

#include <memory>

namespace offload {

/// Says that this thread computes a call of `module`, for as long as this lives: see Note [Guards of a call] in
/// runtime/executor.cpp. PyTorch hands it on to the threads that work for the call: of lanes, at::launch, and autograd.
class CallScope {
 public:
  explicit CallScope(const void* module);
  ~CallScope();
  CallScope(const CallScope&) = delete;
  CallScope& operator=(const CallScope&) = delete;

  /// True where a call of `module` waits for what this thread does: on the way there may be calls of other modules.
  static bool is_within(const void* module);

 private:
  struct Info;

  const std::shared_ptr<Info> info_;
  const c10::DebugInfoGuard guard_;
};

} // namespace offload
