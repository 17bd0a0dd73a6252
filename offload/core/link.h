#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>

#include <offload/core/mark.h>

namespace offload {

/// A point in a *channel*, a queue of work that is executed in order. Whoever waits on it, waits for all that was
/// enqueued there before it was recorded. Implementations hold an event; destroying a fence never waits.
class Fence {
 public:
  explicit Fence(int channel) : channel_(channel), order_(next_order.fetch_add(1, std::memory_order_relaxed)) {}
  virtual ~Fence() = default;
  Fence(const Fence&) = delete;
  Fence& operator=(const Fence&) = delete;

  /// Computation of lane i is channel i; copies of a link are channels below zero, of which a link has one so far.
  int channel() const { return channel_; }
  static constexpr int of_link(int k = 0) { return -1 - k; }

  /// Of two fences of one channel, the one of higher order is the later point.
  std::uint64_t order() const { return order_; }

 private:
  static inline std::atomic<std::uint64_t> next_order = 1;

  int channel_;
  std::uint64_t order_;
};
using FencePtr = std::shared_ptr<Fence>;

// Note [Late fences]
//
// A lane that has enqueued its last read of weight a gets a fence from record_used(). On CUDA no event is recorded for
// it there: most fences are never waited for, and on a busy device each event delays the lane by microseconds. The
// event is recorded when somebody first waits. Here lane 1 wants weight c, and the place of a goes to it:
//
//   lane 0   read a | U | read b | E | read d | ...     U  record_used() gives a fence
//   lane 1   read x | .............. wait C | read c    E  the event of that fence, recorded by the copies' wait
//   copies   ................ wait E | copy c | C       C  record_arrived()
//
// E comes at U or after it. So who waits for U may also wait for later reads (b), and never for fewer than it should.
//
// Staged copies are enqueued long after the batch was handed to the store, while lanes go on. If E was recorded only
// then, the copies would wait for all that the lane has done since, and link and compute would take turns. So the store
// calls record_now() when the batch is handed over (record_readers() in feed/copies.h). So does Streamer::release()
// while calls share a pass: then copies into the place are handed out only when earlier ones have arrived.
//
// A lane must not wait for a copy that waits for a point of that lane whose event is not recorded yet. The event would
// be recorded behind the wait, and each would wait for the other:
//
//   lane 0   read a | U | wait C | E
//   copies   wait E | copy c | C
//
// Streamer::wait_arrived() rules that out: the thread of the lane first waits until the batch is issued. By then the
// copy stream's waits are enqueued, and their events recorded.
//
// Once a call has ended, its stream is the caller's again. A fence without an event stands for the end of the call from
// then on (CudaCall::record). C is never late: other threads wait for it while more copies are enqueued.

/// What carries bytes from host memory to the device: one copy stream, in order, beside the compute streams of the
/// lanes. Streamed weights come to the device by nothing else, and their bytes are counted here.
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

  /// The same moment, to know its time. On a device each delays later copies by microseconds.
  virtual MarkPtr mark() { return std::make_shared<HostMark>(); }

  /// What `lane` enqueues from now on starts only after `arrived`.
  virtual void wait_arrived(int lane, const Fence& arrived) = 0;

  /// A point after all that `lane` has enqueued so far: the weight it read is *used*. It may come to stand for a later
  /// point, and forbids the lane some waits: see Note [Late fences].
  virtual FencePtr record_used(int lane) = 0;

  /// From now on `used` stands for no later point than this one. For those who will wait much later.
  virtual void record_now(const Fence& used) = 0;

  /// True when `arrived` is known to be reached. Does not wait, does not throw.
  virtual bool reached(const Fence& arrived) = 0;

  /// Blocks the calling thread until `fence` is reached.
  virtual void synchronize(const Fence& fence) = 0;

  /// The thread of a lane has waited so long for the store. On the host that is a stall, since the thread computes.
  virtual void note_thread_wait(double /*us*/) {}

  /// Microseconds that compute has waited for copies, as far as known by now; estimated where timing costs time.
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
