#pragma once

// The threads of connections, as httplib asks for them: one for each, made when they are needed.

#include <httplib.h>

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace offload::tools {

/// enqueue() and shutdown() come from the thread that accepts connections.
class ConnectionThreads : public httplib::TaskQueue {
 public:
  explicit ConnectionThreads(std::size_t most) : most_(most) {}

  /// Runs `task` on a thread of its own; where all are taken and no more can be had, here and now: is_one() says which
  /// it was.
  void enqueue(std::function<void()> task) override;

  /// Waits until all tasks have ended.
  void shutdown() override;

  /// Whether the calling thread is one of those.
  static bool is_one();

 private:
  void work();

  const std::size_t most_;
  std::mutex mutex_;
  std::condition_variable came_;
  std::deque<std::function<void()>> tasks_;
  std::size_t idle_ = 0;
  bool ended_ = false;
  std::vector<std::thread> threads_;
};

} // namespace offload::tools
