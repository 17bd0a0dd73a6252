#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>

#include <offload/core/mutex.h>
#include <offload/device/arena.h>
#include <offload/device/device_pages.h>
#include <offload/device/host_loans.h>
#include <offload/error.h>

namespace offload {

/// What one call took of a LaneMemory.
struct CallMemory {
  /// What such a call takes when it is made again, in the units of the device; a lower bound when it was stopped.
  std::uint64_t bytes = 0;
  bool overflowed = false; ///< it wanted more than it could have
  bool by_device = false;  ///< it was the device that had no more, though there was room for it
};

/// Stops a call whose lane can not have what an operator asked for. It is no OutOfMemoryError on purpose: operators of
/// PyTorch that meet one choose another algorithm, and keep to it for the rest of the process, in every module.
class LaneOverflow : public Error {
 public:
  using Error::Error;
};

/// Device memory for the calls of one lane, or for what calls put into their module: an arena whose pages come from the
/// device as they are needed, where whoever keeps the budget allows it.
///
/// Any thread may call allocate(), free() and contains(); the others are for whoever makes the call. Nothing that was
/// given out is used any more when it ends.
class LaneMemory {
 public:
  struct Callbacks {
    /// Held while this memory grows. Memories that share a budget share it, so that what one of them was granted is
    /// taken before another asks.
    std::shared_ptr<Mutex> growth = std::make_shared<Mutex>();

    /// Whether the arena may hold `bytes` in all from now on.
    std::function<bool(std::uint64_t bytes)> may_hold;

    /// Has others give back what they do not need, when the device has no more.
    std::function<void()> make_free;
  };

  /// What a call gets that wants more than it may have.
  enum class Overflow {
    stop, ///< LaneOverflow
    lend, ///< host memory while there is some: it is slow, and shows what the call needs; then LaneOverflow
  };

  LaneMemory(std::unique_ptr<Pages> pages, Callbacks callbacks, HostLoans::Source host);

  /// `bytes` (more than 0), aligned to 512. Throws LaneOverflow.
  void* allocate(std::uint64_t bytes);

  /// What allocate() gave. Who gets it next uses it on the device after what has been enqueued so far.
  void free(void* data);

  bool contains(const void* data) const;

  /// How many addresses it has: the memory of the device.
  std::uint64_t addresses() const { return pages_->addresses(); }

  /// Nobody makes calls with it any more; what is given out may outlive that.
  void abandon() { abandoned_ = true; }
  bool abandoned() const { return abandoned_; }

  /// True when nothing is given out.
  bool empty() const;

  /// A call begins. With `trace`, it is shown what the call takes and gives back.
  void begin_call(Overflow overflow, AllocationTrace* trace = nullptr);

  /// It has ended. Where it was lent something, the device is done with it.
  CallMemory end_call();

  /// True when the call wanted more than it could have.
  bool overflowed() const { return overflowed_; }

  /// Bytes on the device now.
  std::uint64_t held() const { return held_; }

  /// Gives back to the device what is not given out. `wait` returns when the device is done with what has been enqueued
  /// so far. The caller holds the mutex of growth.
  void trim(const std::function<void()>& wait);

  /// For tests: from the n-th allocation of the next call on, as if nobody had more.
  void refuse_from(std::uint64_t n) { refuse_from_ = n; }

 private:
  /// How a call is measured, and what is known of it so far.
  struct Call {
    Overflow overflow = Overflow::stop;
    AllocationTrace* trace = nullptr;
    std::uint64_t allocations = 0;
    bool by_device = false;
  };

  enum class Growth { granted, refused, device_is_full };

  Growth grow(std::uint64_t bytes);
  void give_back(std::uint64_t offset) OFFLOAD_REQUIRES(mutex_);
  bool in_pages(const void* data) const;

  const std::unique_ptr<Pages> pages_;
  const Callbacks callbacks_;
  HostLoans loans_;
  mutable Mutex mutex_;
  Arena arena_ OFFLOAD_GUARDED_BY(mutex_);
  Call call_ OFFLOAD_GUARDED_BY(mutex_);
  std::uint64_t frees_ OFFLOAD_GUARDED_BY(mutex_) = 0;
  std::atomic<bool> overflowed_ = false; // the call, or the last one
  std::atomic<std::uint64_t> held_ = 0;
  std::atomic<bool> abandoned_ = false;
  std::atomic<std::uint64_t> refuse_from_ = ~std::uint64_t{0};
};

} // namespace offload
