#include <offload/stream/cuda_link.h>

#include <atomic>
#include <deque>
#include <mutex>
#include <optional>
#include <string>
#include <utility>

#include <offload/error.h>

namespace offload {

void check_cuda(cudaError_t code, const char* doing) {
  if (code != cudaSuccess) {
    static_cast<void>(cudaGetLastError());
    throw Error(std::string(doing) + " failed: " + cudaGetErrorString(code));
  }
}

namespace {

class DeviceScope {
 public:
  explicit DeviceScope(int device) {
    check_cuda(cudaGetDevice(&before_), "cudaGetDevice");
    if (before_ != device) {
      check_cuda(cudaSetDevice(device), "cudaSetDevice");
      changed_ = true;
    }
  }
  ~DeviceScope() {
    if (changed_) {
      static_cast<void>(cudaSetDevice(before_));
    }
  }
  DeviceScope(const DeviceScope&) = delete;
  DeviceScope& operator=(const DeviceScope&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

/// Events that are not in use. A wait that was enqueued keeps to what the event stood for then, so that an event may be
/// recorded anew as soon as its fence is gone.
class EventPool {
 public:
  explicit EventPool(unsigned flags) : flags_(flags) {}

  ~EventPool() {
    for (cudaEvent_t event : free_) {
      static_cast<void>(cudaEventDestroy(event));
    }
  }

  cudaEvent_t take() {
    {
      const std::lock_guard lock(mutex_);
      if (!free_.empty()) {
        cudaEvent_t event = free_.back();
        free_.pop_back();
        return event;
      }
    }
    cudaEvent_t event = nullptr;
    check_cuda(cudaEventCreateWithFlags(&event, flags_), "cudaEventCreate");
    return event;
  }

  void give_back(cudaEvent_t event) {
    const std::lock_guard lock(mutex_);
    free_.push_back(event);
  }

 private:
  const unsigned flags_;
  std::mutex mutex_;
  std::vector<cudaEvent_t> free_;
};

/// An event of a pool, which gets it back with this object.
class PooledEvent {
 public:
  explicit PooledEvent(std::shared_ptr<EventPool> pool) : pool_(std::move(pool)), event_(pool_->take()) {}
  ~PooledEvent() {
    if (pool_) {
      pool_->give_back(event_);
    }
  }
  PooledEvent(PooledEvent&& other) noexcept = default; // leaves no pool
  PooledEvent& operator=(PooledEvent&&) = delete;
  PooledEvent(const PooledEvent&) = delete;
  PooledEvent& operator=(const PooledEvent&) = delete;

  void record(cudaStream_t stream) const { check_cuda(cudaEventRecord(event_, stream), "cudaEventRecord"); }
  cudaEvent_t get() const { return event_; }

 private:
  std::shared_ptr<EventPool> pool_;
  cudaEvent_t event_;
};

/// A point on a stream, of which an event is recorded when somebody first waits for it: that may be later than the
/// point, never earlier, and most points are never waited for. On the lane of a busy device each event costs
/// microseconds.
class EventFence final : public Fence {
 public:
  EventFence(int lane, cudaStream_t stream, std::shared_ptr<EventPool> pool)
      : Fence(lane), stream_(stream), pool_(std::move(pool)) {}

  cudaEvent_t event() const {
    const std::lock_guard lock(mutex_);
    if (!event_) {
      PooledEvent event(pool_);
      event.record(stream_);
      event_.emplace(std::move(event));
    }
    return event_->get();
  }

 private:
  const cudaStream_t stream_;
  const std::shared_ptr<EventPool> pool_;
  mutable std::mutex mutex_;
  mutable std::optional<PooledEvent> event_;
};

cudaEvent_t event_of(const Fence& fence) { return static_cast<const EventFence&>(fence).event(); }

class CudaLink final : public Link {
 public:
  CudaLink(int device, std::vector<cudaStream_t> lanes) : device_(device), lanes_(std::move(lanes)) {
    const DeviceScope scope(device_);
    check_cuda(cudaStreamCreateWithFlags(&copies_, cudaStreamNonBlocking), "cudaStreamCreate");
  }

  ~CudaLink() override {
    static_cast<void>(cudaStreamSynchronize(copies_));
    static_cast<void>(cudaStreamDestroy(copies_));
  }

  void wait(const Fence& used) override {
    const DeviceScope scope(device_);
    check_cuda(cudaStreamWaitEvent(copies_, event_of(used)), "cudaStreamWaitEvent");
  }

  FencePtr record_arrived() override {
    const DeviceScope scope(device_);
    auto fence = std::make_shared<EventFence>(Fence::kLink, copies_, events_);
    fence->event(); // at once: others will wait for it from their own threads, while more copies are enqueued
    return fence;
  }

  FencePtr record_used(int lane) override { return std::make_shared<EventFence>(lane, lanes_[lane], events_); }

  void wait_arrived(int lane, const Fence& arrived) override {
    const DeviceScope scope(device_);
    const cudaError_t state = cudaEventQuery(event_of(arrived));
    if (state == cudaSuccess) {
      return; // it is there already
    }
    if (state != cudaErrorNotReady) {
      check_cuda(state, "a copy to the device");
    }
    if (waits_++ % kTimedWaits != 0) {
      check_cuda(cudaStreamWaitEvent(lanes_[lane], event_of(arrived)), "cudaStreamWaitEvent");
      return;
    }
    Stall stall{PooledEvent(timing_), PooledEvent(timing_)};
    stall.begin.record(lanes_[lane]);
    check_cuda(cudaStreamWaitEvent(lanes_[lane], event_of(arrived)), "cudaStreamWaitEvent");
    stall.end.record(lanes_[lane]);
    const std::lock_guard lock(stalls_mutex_);
    stalls_.push_back(std::move(stall));
    read_stalls();
  }

  void settle(const Fence& used) override {
    const DeviceScope scope(device_);
    event_of(used);
  }

  bool reached(const Fence& arrived) override {
    try {
      const DeviceScope scope(device_);
      const bool reached = cudaEventQuery(event_of(arrived)) == cudaSuccess;
      static_cast<void>(cudaGetLastError()); // "not ready" is no error; others will be found by the next command
      return reached;
    } catch (const Error&) {
      return false;
    }
  }

  void synchronize(const Fence& fence) override {
    const DeviceScope scope(device_);
    check_cuda(cudaEventSynchronize(event_of(fence)), "waiting for the device");
  }

  double stall_us() override {
    const DeviceScope scope(device_);
    const std::lock_guard lock(stalls_mutex_);
    read_stalls();
    return stall_us_;
  }

 protected:
  void enqueue_copy(void* dst, const void* src, std::size_t bytes) override {
    const DeviceScope scope(device_);
    check_cuda(cudaMemcpyAsync(dst, src, bytes, cudaMemcpyHostToDevice, copies_), "cudaMemcpyAsync");
  }

 private:
  /// One wait in so many is timed, since the events that time it delay the lane.
  static constexpr unsigned kTimedWaits = 16;

  struct Stall {
    PooledEvent begin;
    PooledEvent end;
  };

  /// Adds up the waits that are over, oldest first.
  void read_stalls() {
    while (!stalls_.empty() && cudaEventQuery(stalls_.front().end.get()) == cudaSuccess) {
      float ms = 0;
      if (cudaEventElapsedTime(&ms, stalls_.front().begin.get(), stalls_.front().end.get()) == cudaSuccess) {
        stall_us_ += kTimedWaits * 1e3 * static_cast<double>(ms);
      }
      stalls_.pop_front();
    }
    static_cast<void>(cudaGetLastError()); // "not ready" is no error
  }

  const int device_;
  const std::vector<cudaStream_t> lanes_;
  cudaStream_t copies_ = nullptr;
  std::shared_ptr<EventPool> events_ = std::make_shared<EventPool>(cudaEventDisableTiming);
  std::shared_ptr<EventPool> timing_ = std::make_shared<EventPool>(cudaEventDefault);
  std::atomic<unsigned> waits_ = 0;
  std::mutex stalls_mutex_;
  std::deque<Stall> stalls_;
  double stall_us_ = 0;
};

} // namespace

std::unique_ptr<Link> make_cuda_link(int device, std::vector<cudaStream_t> lanes) {
  return std::make_unique<CudaLink>(device, std::move(lanes));
}

} // namespace offload
