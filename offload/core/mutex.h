#pragma once

// A mutex, its locks and its conditions, which clang's thread-safety analysis follows (-Wthread-safety; tools/tidy runs
// it). What is OFFLOAD_GUARDED_BY a mutex is touched only by who holds it; a function that OFFLOAD_REQUIRES one is
// called only by who does.

#include <chrono>
#include <condition_variable>
#include <mutex>

#if defined(__clang__)
#define OFFLOAD_THREAD_ATTRIBUTE(attribute) __attribute__((attribute))
#else
#define OFFLOAD_THREAD_ATTRIBUTE(attribute)
#endif
#define OFFLOAD_GUARDED_BY(mutex) OFFLOAD_THREAD_ATTRIBUTE(guarded_by(mutex))
#define OFFLOAD_REQUIRES(mutex) OFFLOAD_THREAD_ATTRIBUTE(requires_capability(mutex))
#define OFFLOAD_UNCHECKED OFFLOAD_THREAD_ATTRIBUTE(no_thread_safety_analysis)

namespace offload {

class OFFLOAD_THREAD_ATTRIBUTE(capability("mutex")) Mutex {
 public:
  void lock() OFFLOAD_THREAD_ATTRIBUTE(acquire_capability()) { mutex_.lock(); }
  void unlock() OFFLOAD_THREAD_ATTRIBUTE(release_capability()) { mutex_.unlock(); }

 private:
  friend class Condition;
  std::mutex mutex_;
};

/// Holds a mutex for as long as it lives.
class OFFLOAD_THREAD_ATTRIBUTE(scoped_lockable) Lock {
 public:
  explicit Lock(Mutex& mutex) OFFLOAD_THREAD_ATTRIBUTE(acquire_capability(mutex)) : mutex_(mutex) { mutex_.lock(); }
  ~Lock() OFFLOAD_THREAD_ATTRIBUTE(release_capability()) { mutex_.unlock(); }
  Lock(const Lock&) = delete;
  Lock& operator=(const Lock&) = delete;

 private:
  Mutex& mutex_;
};

/// Lets go of a mutex that is held, for as long as it lives.
class OFFLOAD_THREAD_ATTRIBUTE(scoped_lockable) Unlock {
 public:
  explicit Unlock(Mutex& mutex) OFFLOAD_THREAD_ATTRIBUTE(release_capability(mutex)) : mutex_(mutex) { mutex_.unlock(); }
  ~Unlock() OFFLOAD_THREAD_ATTRIBUTE(release_capability()) { mutex_.lock(); } // for the analysis the unlocking ends
  Unlock(const Unlock&) = delete;
  Unlock& operator=(const Unlock&) = delete;

 private:
  Mutex& mutex_;
};

class Condition {
 public:
  /// Lets go of `mutex`, which the caller holds, until it is notified and `over()` is true. `over` is called with the
  /// mutex held, and throws nothing.
  template <typename Over>
  void wait(Mutex& mutex, Over over) OFFLOAD_REQUIRES(mutex) OFFLOAD_UNCHECKED {
    std::unique_lock lock(mutex.mutex_, std::adopt_lock);
    condition_.wait(lock, over);
    lock.release();
  }

  /// Lets go of it until it is notified or `most` is over, or, now and then, before either.
  void wait_for(Mutex& mutex, std::chrono::milliseconds most) OFFLOAD_REQUIRES(mutex) OFFLOAD_UNCHECKED {
    std::unique_lock lock(mutex.mutex_, std::adopt_lock);
    condition_.wait_for(lock, most);
    lock.release();
  }

  void notify_one() { condition_.notify_one(); }
  void notify_all() { condition_.notify_all(); }

 private:
  std::condition_variable condition_;
};

} // namespace offload
