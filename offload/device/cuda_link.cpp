#include <offload/device/cuda_link.h>

#include <atomic>
#include <deque>
#include <mutex>
#include <optional>
#include <utility>

#include <offload/device/cuda_calls.h>
#include <offload/device/cuda_mark.h>
#include <offload/error.h>

namespace offload {

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

/// A point in a call. Its event is recorded when somebody first asks for it: see Note [Late fences] in core/link.h.
class EventFence final : public Fence {
 public:
  EventFence(int channel, CudaCallPtr call) : Fence(channel), call_(std::move(call)) {}

  cudaEvent_t event() const {
    const std::lock_guard lock(mutex_);
    if (!event_) {
      event_ = call_->record();
    }
    return event_.get();
  }

 private:
  const CudaCallPtr call_;
  mutable std::mutex mutex_;
  mutable EventPtr event_;
};

cudaEvent_t event_of(const Fence& fence) { return static_cast<const EventFence&>(fence).event(); }

class CudaLink final : public Link {
 public:
  CudaLink(int device, std::shared_ptr<const CudaCalls> calls) : device_(device), calls_(std::move(calls)) {
    const DeviceScope scope(device_);
    copies_.emplace();
    all_copies_ = std::make_shared<CudaCall>(copies_->get(), calls_->events());
  }

  ~CudaLink() override { static_cast<void>(cudaStreamSynchronize(copies_->get())); }

  void wait(const Fence& used) override {
    const DeviceScope scope(device_);
    check_cuda(cudaStreamWaitEvent(copies_->get(), event_of(used)), "cudaStreamWaitEvent");
  }

  FencePtr record_arrived() override {
    const DeviceScope scope(device_);
    auto fence = std::make_shared<EventFence>(Fence::of_link(), all_copies_);
    fence->event(); // at once: see Note [Late fences]
    return fence;
  }

  MarkPtr mark() override {
    return mark_stream(static_cast<c10::DeviceIndex>(device_), copies_->get(), *calls_->timed_events());
  }

  FencePtr record_used(int lane) override { return std::make_shared<EventFence>(lane, calls_->last(lane)); }

  void wait_arrived(int lane, const Fence& arrived) override {
    const DeviceScope scope(device_);
    cudaEvent_t event = event_of(arrived);
    if (has_reached(event)) {
      return;
    }
    cudaStream_t stream = calls_->last(lane)->stream();
    if (waits_++ % kTimedWaits != 0) {
      check_cuda(cudaStreamWaitEvent(stream, event), "cudaStreamWaitEvent");
      return;
    }
    const Stall stall{calls_->timed_events()->take(), calls_->timed_events()->take()};
    check_cuda(cudaEventRecord(stall.begin.get(), stream), "cudaEventRecord");
    check_cuda(cudaStreamWaitEvent(stream, event), "cudaStreamWaitEvent");
    check_cuda(cudaEventRecord(stall.end.get(), stream), "cudaEventRecord");
    const std::lock_guard lock(stalls_mutex_);
    stalls_.push_back(stall);
    read_stalls();
  }

  void record_now(const Fence& used) override {
    const DeviceScope scope(device_);
    event_of(used);
  }

  bool reached(const Fence& arrived) override {
    try {
      const DeviceScope scope(device_);
      return has_reached(event_of(arrived));
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
    check_cuda(cudaMemcpyAsync(dst, src, bytes, cudaMemcpyHostToDevice, copies_->get()), "cudaMemcpyAsync");
  }

 private:
  /// One wait in so many is timed, since the events that time it delay the lane.
  static constexpr unsigned kTimedWaits = 16;

  struct Stall {
    EventPtr begin;
    EventPtr end;
  };

  /// Adds up the waits that are over, oldest first.
  void read_stalls() {
    while (!stalls_.empty() && has_reached(stalls_.front().end.get())) {
      float ms = 0;
      if (cudaEventElapsedTime(&ms, stalls_.front().begin.get(), stalls_.front().end.get()) == cudaSuccess) {
        stall_us_ += kTimedWaits * 1e3 * static_cast<double>(ms);
      }
      stalls_.pop_front();
    }
  }

  const int device_;
  const std::shared_ptr<const CudaCalls> calls_;
  std::optional<OwnStream> copies_;
  CudaCallPtr all_copies_; // no call, but it never ends
  std::atomic<unsigned> waits_ = 0;
  std::mutex stalls_mutex_;
  std::deque<Stall> stalls_;
  double stall_us_ = 0;
};

} // namespace

std::unique_ptr<Link> make_cuda_link(int device, std::shared_ptr<const CudaCalls> calls) {
  return std::make_unique<CudaLink>(device, std::move(calls));
}

} // namespace offload
