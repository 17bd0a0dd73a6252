#include <tools/serve_threads.h>

#include <system_error>
#include <utility>

namespace offload::tools {

namespace {

thread_local bool is_connection_thread = false;

} // namespace

bool ConnectionThreads::is_one() { return is_connection_thread; }

void ConnectionThreads::enqueue(std::function<void()> task) {
  {
    const std::scoped_lock lock(mutex_);
    if (tasks_.size() >= idle_ && threads_.size() < most_) {
      try {
        threads_.emplace_back([this] { work(); });
        ++idle_;
      } catch (const std::system_error&) { // the machine gives none
      }
    }
    if (tasks_.size() < idle_) {
      tasks_.push_back(std::move(task));
      came_.notify_one();
      return;
    }
  }
  task();
}

void ConnectionThreads::shutdown() {
  {
    const std::scoped_lock lock(mutex_);
    ended_ = true;
  }
  came_.notify_all();
  for (std::thread& thread : threads_) {
    thread.join();
  }
}

void ConnectionThreads::work() {
  is_connection_thread = true;
  std::unique_lock lock(mutex_);
  while (true) {
    came_.wait(lock, [&] { return ended_ || !tasks_.empty(); });
    if (tasks_.empty()) {
      return;
    }
    const std::function<void()> task = std::move(tasks_.front());
    tasks_.pop_front();
    --idle_;
    lock.unlock();
    task();
    lock.lock();
    ++idle_;
  }
}

} // namespace offload::tools
