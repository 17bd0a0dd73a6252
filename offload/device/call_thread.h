#pragma once

#include <c10/core/Device.h>

#include <exception>
#include <functional>
#include <semaphore>
#include <thread>

namespace offload {

/// A thread that computes calls on behalf of others, one at a time. Libraries keep something for every thread that uses
/// them (a handle of cuBLAS takes 64 MiB of the device, and is never given back while its thread lives): with a thread
/// for each lane that does not grow with the number of callers.
class CallThread {
 public:
  /// No work is under way.
  ~CallThread();

  /// Runs `work` there and waits for it: with what the calling thread has set for itself in PyTorch (gradients,
  /// inference mode, autocast, profilers, current device, current stream of `device`). What it throws is thrown here.
  /// The thread is started by the first call; throws Error where the system has none.
  void run(c10::Device device, const std::function<void()>& work);

  /// True on a thread of a lane: nothing but calls has ever run there.
  static bool is_current();

 private:
  void serve();

  std::binary_semaphore wanted_{0};
  std::binary_semaphore done_{0};
  const std::function<void()>* work_ = nullptr; // null when the thread is to end
  std::exception_ptr failure_;
  std::thread thread_;
};

} // namespace offload
