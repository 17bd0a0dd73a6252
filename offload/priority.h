#pragma once

#include <offload/export.h>

namespace offload {

/// How urgent a call is, beside others of its module or its pool.
enum class Priority { low, normal, high };

/// Calls that this thread makes while it lives have `priority`; without one they have Priority::normal. Of several, the
/// innermost holds.
///
/// Of the calls that wait for their turn, those of the highest priority go first, in the order in which they came; but
/// a call is overtaken by no more than 16 that came later. Calls in flight that stream other weights than each other
/// share the link: one of the next higher priority gets about three times as much of it. Those that stream the same
/// weights go together, and what one of them brings, all use.
class OFFLOAD_API PriorityGuard {
 public:
  explicit PriorityGuard(Priority priority) noexcept;
  ~PriorityGuard();
  PriorityGuard(const PriorityGuard&) = delete;
  PriorityGuard& operator=(const PriorityGuard&) = delete;

  /// Of the calls that this thread makes.
  static Priority current() noexcept;

 private:
  const Priority before_;
};

} // namespace offload
