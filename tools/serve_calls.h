#pragma once

// The threads that call models, and the queue before them. Connections come and go; calls have a fixed number of
// threads, each with a CUDA stream of its own, since memory that PyTorch keeps is kept for each stream.

#include <c10/core/Device.h>

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace offload::tools {

/// Any thread may call any member at any time, but for the destructor, which comes after all of run().
class CallThreads {
 public:
  using Call = std::function<void(std::chrono::nanoseconds waited)>;

  /// `most_waiting` calls may wait while each of the threads makes one.
  CallThreads(int threads, std::size_t most_waiting, c10::Device device);
  ~CallThreads();
  CallThreads(const CallThreads&) = delete;
  CallThreads& operator=(const CallThreads&) = delete;

  /// Makes `call` on one of the threads, in the order in which calls come, and returns after it: what it throws is
  /// thrown here. False, and nothing is called, when too many wait.
  bool run(const Call& call);

  std::size_t waiting() const;
  std::size_t at_work() const;

 private:
  struct Waiting;

  void work(c10::Device device);

  const std::size_t most_waiting_;
  mutable std::mutex mutex_;
  std::condition_variable came_;
  std::deque<Waiting*> queue_; // each stands on the stack of its run()
  std::size_t at_work_ = 0;
  bool ended_ = false;
  std::vector<std::thread> threads_;
};

} // namespace offload::tools
