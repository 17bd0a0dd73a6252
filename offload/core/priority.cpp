#include <offload/priority.h>

#include <utility>

namespace offload {

namespace {

thread_local Priority of_this_thread = Priority::normal;

} // namespace

PriorityGuard::PriorityGuard(Priority priority) noexcept : before_(std::exchange(of_this_thread, priority)) {}

PriorityGuard::~PriorityGuard() { of_this_thread = before_; }

Priority PriorityGuard::current() noexcept { return of_this_thread; }

} // namespace offload
