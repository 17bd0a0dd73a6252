#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <utility>

#include <offload/core/team.h>

namespace offload {

/// Those who wait for batches of a store, and the work that is left to them: where there is a team, they do it with it.
class Waiters {
 public:
  explicit Waiters(Team team) : team_(std::move(team)) {}

  /// True when work may be left to them.
  bool work() const { return team_ != nullptr; }

  void leave(std::function<void()> work) {
    {
      const std::lock_guard lock(mutex_);
      left_.push_back(std::move(work));
    }
    changed_.notify_all();
  }

  /// Until `over` is true. Whoever makes it so calls notify() afterwards.
  void await(const std::function<bool()>& over) {
    std::unique_lock lock(mutex_);
    while (!over()) {
      if (left_.empty()) {
        changed_.wait(lock);
        continue;
      }
      lock.unlock();
      const auto work = [&] {
        while (!over() && do_one()) {
        }
      };
      try {
        team_(work);
      } catch (const std::exception&) { // no memory for a team
        work();
      }
      lock.lock();
    }
  }

  void notify() {
    {
      const std::lock_guard lock(mutex_);
    } // nobody is between a look and a wait
    changed_.notify_all();
  }

 private:
  /// False when nothing is left.
  bool do_one() {
    std::function<void()> work;
    {
      const std::lock_guard lock(mutex_);
      if (left_.empty()) {
        return false;
      }
      work = std::move(left_.front());
      left_.pop_front();
    }
    work();
    return true;
  }

  const Team team_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> left_;
};

} // namespace offload
