#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>

namespace offload {

/// A point in a *channel*, a queue of work that is executed in order. Whoever waits on it, waits for all that was
/// enqueued there before it was recorded. Implementations hold an event; destroying a fence never waits.
class Fence {
 public:
  explicit Fence(int channel) : channel_(channel), order_(next_order()) {}
  virtual ~Fence() = default;
  Fence(const Fence&) = delete;
  Fence& operator=(const Fence&) = delete;

  /// Computation of lane i is channel i; copies of a link are channels below zero, of which a link has one so far.
  int channel() const { return channel_; }
  static constexpr int of_link(int k = 0) { return -1 - k; }

  /// Of two fences of one channel, the one of higher order is the later point.
  std::uint64_t order() const { return order_; }

 private:
  static std::uint64_t next_order() {
    static std::atomic<std::uint64_t> next = 1;
    return next.fetch_add(1, std::memory_order_relaxed);
  }

  int channel_;
  std::uint64_t order_;
};
using FencePtr = std::shared_ptr<Fence>;

/// What carries bytes from host memory to the device: one copy stream, in order, beside the compute streams of the
/// lanes.
///
/// Streamed weights come to the device by nothing else, and their bytes are counted here: by a CUDA link, a link
/// between two places in host memory, a link for tests that delays and fails, or one that only keeps time, for
/// planning.
///
/// Calls about the copy stream come from one thread at a time; calls about a lane from the thread that runs it. Every
/// function throws offload::Error when the device refuses; nothing was enqueued then.
class Link {
 public:
  virtual ~Link() = default;

  /// Later copies start only after `used`.
  virtual void wait(const Fence& used) = 0;

  /// Enqueues a copy of `bytes` from `src` to `dst` on the device. Both stay as they are until a fence recorded after
  /// it is reached.
  void copy(void* dst, const void* src, std::size_t bytes) {
    enqueue_copy(dst, src, bytes);
    count(bytes);
  }

  /// Counts bytes that are where they are wanted without a copy.
  void count(std::size_t bytes) {
    bytes_ += bytes;
    ++copies_;
  }

  /// The point after all copies so far: their bytes have *arrived*.
  virtual FencePtr record_arrived() = 0;

  /// What `lane` enqueues from now on starts only after `arrived`.
  virtual void wait_arrived(int lane, const Fence& arrived) = 0;

  /// A point after all that `lane` has enqueued so far: the weight it read is *used*. The event may be recorded only
  /// by record_now() or when somebody first waits for it, and then stands for all that the lane has enqueued by then.
  /// Until then the lane must not wait for a copy that itself waits for this point: each would wait for the other.
  virtual FencePtr record_used(int lane) = 0;

  /// Records the event of `used` now, where that has not been done. For those who will wait much later than now, while
  /// the lane goes on.
  virtual void record_now(const Fence& used) = 0;

  /// True when `fence`, of the copy stream, is known to be reached. Does not wait, does not throw.
  virtual bool reached(const Fence& arrived) = 0;

  /// Blocks the calling thread until `fence` is reached.
  virtual void synchronize(const Fence& fence) = 0;

  /// The thread of a lane waited so long for the store. On the host, where that thread computes, it is a stall.
  virtual void note_thread_wait(double /*us*/) {}

  /// Microseconds that compute has waited for copies, as far as it is known by now; a sample where timing costs time.
  virtual double stall_us() = 0;

  std::uint64_t bytes() const { return bytes_; }
  std::uint64_t copies() const { return copies_; }

 protected:
  virtual void enqueue_copy(void* dst, const void* src, std::size_t bytes) = 0;

 private:
  std::atomic<std::uint64_t> bytes_ = 0;
  std::atomic<std::uint64_t> copies_ = 0;
};

} // namespace offload
