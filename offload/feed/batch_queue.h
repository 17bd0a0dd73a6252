#pragma once

#include <deque>
#include <utility>

#include <offload/core/batch.h>
#include <offload/core/mutex.h>

namespace offload {

/// Batches on their way to the one thread that takes them, and ends them. Any thread puts, drains and closes.
class BatchQueue {
 public:
  /// Takes `batch`, unless it throws.
  void put(Batch&& batch) {
    {
      const Lock lock(mutex_);
      batches_.push_back(std::move(batch));
      ++pending_;
    }
    work_.notify_one();
  }

  /// False when there is none.
  bool take(Batch& batch) {
    const Lock lock(mutex_);
    if (batches_.empty()) {
      return false;
    }
    batch = std::move(batches_.front());
    batches_.pop_front();
    return true;
  }

  /// Waits for one to take. False when there is none and will be none.
  bool await_any() {
    const Lock lock(mutex_);
    work_.wait(mutex_, [&]() OFFLOAD_REQUIRES(mutex_) { return closed_ || !batches_.empty(); });
    return !batches_.empty();
  }

  /// One of those that were taken has been issued, or has failed.
  void note_ended() {
    const Lock lock(mutex_);
    --pending_;
    drained_.notify_all();
  }

  /// Waits until all that were put have ended.
  void drain() {
    const Lock lock(mutex_);
    drained_.wait(mutex_, [&]() OFFLOAD_REQUIRES(mutex_) { return pending_ == 0; });
  }

  /// No more will be put.
  void close() {
    {
      const Lock lock(mutex_);
      closed_ = true;
    }
    work_.notify_all();
  }

 private:
  Mutex mutex_;
  Condition work_;
  Condition drained_;
  std::deque<Batch> batches_ OFFLOAD_GUARDED_BY(mutex_);
  int pending_ OFFLOAD_GUARDED_BY(mutex_) = 0; // batches that have not ended
  bool closed_ OFFLOAD_GUARDED_BY(mutex_) = false;
};

} // namespace offload
