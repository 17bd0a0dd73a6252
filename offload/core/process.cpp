#include <offload/process.h>

#include <pthread.h>

#include <atomic>

namespace offload {

namespace {

std::atomic<std::uint64_t> generation = 0; // forks between the first process and this one

/// Before any module is made, so that no thread is at it when the process forks.
[[maybe_unused]] const int kRegistered = pthread_atfork(nullptr, nullptr, [] { ++generation; });

} // namespace

Process::Process() : generation_(generation) {}

bool Process::is_this() const { return generation_ == generation; }

} // namespace offload
