#pragma once

#include <unistd.h>

#include <atomic>
#include <chrono>
#include <fstream>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace offload::test {

/// Runs `work(i)` on `count` threads at once.
template <typename Work>
void in_parallel(int count, Work work) {
  std::vector<std::thread> threads;
  for (int i = 0; i < count; ++i) {
    threads.emplace_back([&work, i] { work(i); });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
}

/// A thread that is expected to wait for something.
class BlockedThread {
 public:
  template <typename Work>
  explicit BlockedThread(Work work)
      : thread_([this, work = std::move(work)] {
          id_ = gettid();
          work();
          done_ = true;
        }) {}
  ~BlockedThread() {
    if (thread_.joinable()) {
      thread_.join();
    }
  }
  BlockedThread(const BlockedThread&) = delete;
  BlockedThread& operator=(const BlockedThread&) = delete;

  /// Returns once the kernel says that the thread sleeps, and has for so long that it is not for a lock which somebody
  /// has who was not let run.
  void await_blocked() const {
    for (int seen = 0; seen < 20 && !done_;) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
      seen = id_ != 0 && sleeps() ? seen + 1 : 0;
    }
  }
  bool done() const { return done_; }
  void join() { thread_.join(); }

 private:
  bool sleeps() const {
    std::ifstream file("/proc/self/task/" + std::to_string(id_) + "/stat");
    std::string text;
    std::getline(file, text);
    const auto name_end = text.rfind(')');
    return name_end != std::string::npos && name_end + 2 < text.size() && text[name_end + 2] == 'S';
  }

  std::atomic<int> id_ = 0;
  std::atomic<bool> done_ = false;
  std::thread thread_; // last: it starts when all else is there
};

/// What threads did, in the order in which they did it.
class Notes {
 public:
  void note(const char* what) {
    const std::lock_guard lock(mutex_);
    all_.emplace_back(what);
  }
  void clear() { all_.clear(); }
  const std::vector<std::string>& all() const { return all_; }

 private:
  std::mutex mutex_;
  std::vector<std::string> all_;
};

} // namespace offload::test
