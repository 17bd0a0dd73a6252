#include <offload/stream/lanes.h>

#include <ATen/cuda/CUDAContextLight.h>
#include <ATen/cuda/MemPool.h>
#include <ATen/ops/empty_strided.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/csrc/cuda/CUDAPluggableAllocator.h>

#include <map>
#include <mutex>
#include <thread>

#include <offload/stream/cuda_link.h>

namespace offload {

namespace {

class HostLanes final : public Lanes {
 public:
  std::unique_ptr<Call> enter(int) override { return std::make_unique<HostCall>(); }
  bool owns(const void*) const override { return false; }
  void set_reserve(std::uint64_t) override {}
  void allow_overflow(bool) override {}
  void reset() override {}
  std::uint64_t reserved() const override { return 0; }
  std::uint64_t high_water() const override { return 0; }
  std::uint64_t demand() const override { return 0; }
  std::uint64_t take_refused() override { return 0; }
  void synchronize() override {}
  std::vector<void*> streams() const override { return {}; }

 private:
  class HostCall final : public Call {
   public:
    std::vector<at::Tensor> leave(const std::vector<at::Tensor>& inner) override {
      std::vector<at::Tensor> outer;
      outer.reserve(inner.size());
      for (const at::Tensor& tensor : inner) {
        outer.push_back(tensor.clone());
      }
      return outer;
    }
  };
};

/// Device memory that the pools of all lanes get from the driver, up to the reserve. Shared with the pools, which live
/// until the last tensor that was allocated in them is gone.
class Segments {
 public:
  void* allocate(std::size_t bytes) {
    const std::lock_guard lock(mutex_);
    const bool fits = reserved_ + bytes <= reserve_;
    if (!fits && !overflow_) {
      refused_ = bytes;
      return nullptr;
    }
    void* data = nullptr;
    const auto status = fits ? cudaMalloc(&data, bytes) : cudaHostAlloc(&data, bytes, cudaHostAllocDefault);
    if (status != cudaSuccess) {
      static_cast<void>(cudaGetLastError());
      refused_ = bytes;
      return nullptr;
    }
    refused_ = 0;
    segments_[static_cast<const std::byte*>(data)] = {bytes, !fits};
    (fits ? reserved_ : overflowed_) += bytes;
    high_water_ = std::max(high_water_, reserved_);
    demand_ = std::max(demand_, reserved_ + overflowed_);
    return data;
  }

  void free(void* data) {
    Segment segment;
    {
      const std::lock_guard lock(mutex_);
      const auto entry = segments_.find(static_cast<const std::byte*>(data));
      if (entry == segments_.end()) {
        return;
      }
      segment = entry->second;
      (segment.on_host ? overflowed_ : reserved_) -= segment.bytes;
      segments_.erase(entry);
    }
    static_cast<void>(segment.on_host ? cudaFreeHost(data) : cudaFree(data));
  }

  bool contains(const void* address) const {
    const std::lock_guard lock(mutex_);
    const auto* byte = static_cast<const std::byte*>(address);
    auto segment = segments_.upper_bound(byte);
    return segment != segments_.begin() && byte < std::prev(segment)->first + std::prev(segment)->second.bytes;
  }

  void set_reserve(std::uint64_t bytes) {
    const std::lock_guard lock(mutex_);
    reserve_ = bytes;
  }
  void allow_overflow(bool allow) {
    const std::lock_guard lock(mutex_);
    overflow_ = allow;
  }
  void reset_demand() {
    const std::lock_guard lock(mutex_);
    demand_ = reserved_ + overflowed_;
  }
  std::uint64_t reserved() const {
    const std::lock_guard lock(mutex_);
    return reserved_;
  }
  std::uint64_t high_water() const {
    const std::lock_guard lock(mutex_);
    return high_water_;
  }
  std::uint64_t demand() const {
    const std::lock_guard lock(mutex_);
    return demand_;
  }
  std::uint64_t take_refused() {
    const std::lock_guard lock(mutex_);
    return std::exchange(refused_, 0);
  }

 private:
  struct Segment {
    std::uint64_t bytes = 0;
    bool on_host = false; // page-locked, which the device can reach
  };

  mutable std::mutex mutex_;
  std::map<const std::byte*, Segment> segments_;
  std::uint64_t reserve_ = 0;
  std::uint64_t overflowed_ = 0;
  std::uint64_t demand_ = 0;
  bool overflow_ = false;
  std::uint64_t reserved_ = 0;
  std::uint64_t high_water_ = 0;
  std::uint64_t refused_ = 0;
};

struct Event {
  Event() { check_cuda(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "cudaEventCreate"); }
  ~Event() { static_cast<void>(cudaEventDestroy(event)); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  cudaEvent_t event = nullptr;
};

/// What is enqueued on `waiting` from now on comes after what `for_this` holds. An idle stream needs no event: asking
/// costs the host less than a wait costs the device.
void let_wait(cudaStream_t waiting, cudaStream_t for_this, const Event& event) {
  if (cudaStreamQuery(for_this) == cudaSuccess) {
    return;
  }
  static_cast<void>(cudaGetLastError()); // "not ready" is no error; others will be found by the next command
  check_cuda(cudaEventRecord(event.event, for_this), "cudaEventRecord");
  check_cuda(cudaStreamWaitEvent(waiting, event.event), "cudaStreamWaitEvent");
}

/// One lane: a stream that nobody else uses, and a pool of the caching allocator that takes the allocations made on it.
class CudaLane {
 public:
  CudaLane(c10::DeviceIndex device, const std::shared_ptr<Segments>& segments)
      : device_(device),
        allocator_(std::make_shared<torch::cuda::CUDAPluggableAllocator::CUDAPluggableAllocator>(
            [segments](std::size_t bytes, int, cudaStream_t) { return segments->allocate(bytes); },
            [segments](void* data, std::size_t, int, cudaStream_t) { segments->free(data); })),
        pool_(std::make_unique<at::cuda::MemPool>(allocator_)) {
    check_cuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreate");
  }

  ~CudaLane() {
    static_cast<void>(cudaStreamSynchronize(stream_));
    drop_workspaces();
    static_cast<void>(cudaStreamDestroy(stream_));
  }

  class Call final : public Lanes::Call {
   public:
    explicit Call(CudaLane& lane)
        : lane_(lane), caller_(c10::cuda::getCurrentCUDAStream(lane.device_)), device_(lane.device_) {
      // Handles of cuBLAS belong to threads, and their workspaces to handle and stream: another thread would get
      // another.
      if (lane_.thread_ != std::this_thread::get_id()) {
        lane_.drop_workspaces();
        lane_.thread_ = std::this_thread::get_id();
      }
      let_wait(lane_.stream_, caller_.stream(), lane_.begun_);
      const cudaStream_t own = lane_.stream_;
      c10::cuda::CUDACachingAllocator::beginAllocateToPool(lane_.device_, lane_.pool_->id(),
                                                           [own](cudaStream_t stream) { return stream == own; });
      stream_guard_.emplace(c10::cuda::getStreamFromExternal(lane_.stream_, lane_.device_));
    }

    ~Call() override {
      stream_guard_.reset();
      c10::cuda::CUDACachingAllocator::endAllocateToPool(lane_.device_, lane_.pool_->id());
      c10::cuda::CUDACachingAllocator::releasePool(lane_.device_, lane_.pool_->id());
      if (!left_) { // an exception: nothing comes out, but the caller's inputs were read
        static_cast<void>(cudaEventRecord(lane_.ended_.event, lane_.stream_));
        static_cast<void>(cudaStreamWaitEvent(caller_.stream(), lane_.ended_.event));
      }
    }

    std::vector<at::Tensor> leave(const std::vector<at::Tensor>& inner) override {
      std::vector<at::Tensor> outer;
      if (!inner.empty()) {
        const c10::cuda::CUDAStreamGuard caller(caller_);
        for (const at::Tensor& tensor : inner) {
          const bool dense = tensor.is_non_overlapping_and_dense();
          outer.push_back(dense ? at::empty_strided(tensor.sizes(), tensor.strides(), tensor.options())
                                : at::empty_strided(tensor.sizes(), tensor.contiguous().strides(), tensor.options()));
        }
      }
      if (!outer.empty()) {
        // What the caller's stream still does with memory that it has just freed comes first.
        let_wait(lane_.stream_, caller_.stream(), lane_.begun_);
        for (std::size_t i = 0; i < inner.size(); ++i) {
          outer[i].copy_(inner[i], /*non_blocking=*/true);
        }
      }
      let_wait(caller_.stream(), lane_.stream_, lane_.ended_);
      left_ = true;
      return outer;
    }

   private:
    CudaLane& lane_;
    c10::cuda::CUDAStream caller_;
    c10::cuda::CUDAGuard device_;
    std::optional<c10::cuda::CUDAStreamGuard> stream_guard_;
    bool left_ = false;
  };

  cudaStream_t stream() const { return stream_; }

  /// Gives back all memory that no tensor holds; what tensors hold goes with them.
  void reset() {
    check_cuda(cudaStreamSynchronize(stream_), "waiting for the device");
    drop_workspaces();
    pool_ = std::make_unique<at::cuda::MemPool>(allocator_);
  }

 private:
  void drop_workspaces() {
    const auto drop = [this](at::cuda::WorkspaceMapWithMutex& workspaces) {
      const std::unique_lock lock(workspaces.mutex);
      for (auto entry = workspaces.map.begin(); entry != workspaces.map.end();) {
        entry = std::get<1>(entry->first) == stream_ ? workspaces.map.erase(entry) : std::next(entry);
      }
    };
    drop(at::cuda::cublas_handle_stream_to_workspace());
    drop(at::cuda::cublaslt_handle_stream_to_workspace());
  }

  const c10::DeviceIndex device_;
  const std::shared_ptr<c10::cuda::CUDACachingAllocator::CUDAAllocator> allocator_;
  std::unique_ptr<at::cuda::MemPool> pool_;
  cudaStream_t stream_ = nullptr;
  Event begun_;
  Event ended_;
  std::thread::id thread_;
};

class CudaLanes final : public Lanes {
 public:
  CudaLanes(c10::Device device, int count) : device_(device) {
    const c10::cuda::CUDAGuard guard(device_);
    for (int i = 0; i < count; ++i) {
      lanes_.push_back(std::make_unique<CudaLane>(device.index(), segments_));
    }
  }

  ~CudaLanes() override {
    const c10::cuda::CUDAGuard guard(device_);
    lanes_.clear();
  }

  std::unique_ptr<Call> enter(int lane) override { return std::make_unique<CudaLane::Call>(*lanes_[lane]); }
  bool owns(const void* address) const override { return segments_->contains(address); }
  void set_reserve(std::uint64_t bytes) override { segments_->set_reserve(bytes); }
  void allow_overflow(bool allow) override { segments_->allow_overflow(allow); }
  void reset() override {
    const c10::cuda::CUDAGuard guard(device_);
    for (const auto& lane : lanes_) {
      lane->reset();
    }
    segments_->reset_demand();
  }
  std::uint64_t reserved() const override { return segments_->reserved(); }
  std::uint64_t high_water() const override { return segments_->high_water(); }
  std::uint64_t demand() const override { return segments_->demand(); }
  std::uint64_t take_refused() override { return segments_->take_refused(); }

  void synchronize() override {
    for (const auto& lane : lanes_) {
      check_cuda(cudaStreamSynchronize(lane->stream()), "waiting for the device");
    }
  }

  std::vector<void*> streams() const override {
    std::vector<void*> streams;
    streams.reserve(lanes_.size());
    for (const auto& lane : lanes_) {
      streams.push_back(lane->stream());
    }
    return streams;
  }

 private:
  const c10::Device device_;
  const std::shared_ptr<Segments> segments_ = std::make_shared<Segments>();
  std::vector<std::unique_ptr<CudaLane>> lanes_;
};

} // namespace

std::unique_ptr<Lanes> make_lanes(c10::Device device, int count) {
  if (device.is_cuda()) {
    return std::make_unique<CudaLanes>(device, count);
  }
  return std::make_unique<HostLanes>();
}

} // namespace offload
