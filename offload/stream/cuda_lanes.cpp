#include <ATen/cuda/CUDAContextLight.h>
#include <ATen/ops/empty_strided.h>
#include <ATen/record_function.h>
#include <c10/core/Allocator.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <c10/util/ThreadLocalDebugInfo.h>

#include <algorithm>
#include <array>
#include <mutex>
#include <thread>

#include <offload/bytes.h>
#include <offload/error.h>
#include <offload/stream/cuda_link.h>
#include <offload/stream/lanes.h>
#include <offload/stream/memory.h>
#include <offload/stream/pool.h>

namespace offload {

namespace {

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

/// The geometry of a tensor, or of its contiguous copy where it overlaps itself or has holes.
at::Tensor empty_as(const at::Tensor& tensor) {
  const bool dense = tensor.is_non_overlapping_and_dense();
  return at::empty_strided(tensor.sizes(), dense ? tensor.strides() : tensor.contiguous().strides(), tensor.options());
}

/// Listens to what PyTorch's allocator tells a profiler of this thread, and keeps what concerns one pool. A profiler
/// that runs already learns nothing of the call.
class Recorder final : public c10::MemoryReportingInfoBase {
 public:
  explicit Recorder(const Segments& segments) : segments_(segments) {}

  void reportMemoryUsage(void* data, std::int64_t bytes, std::size_t, std::size_t, c10::Device) override {
    const std::uint64_t size = static_cast<std::uint64_t>(bytes < 0 ? -bytes : bytes);
    if (size > kSmallBlockBytes && segments_.contains(data)) {
      trace.push_back({reinterpret_cast<std::uint64_t>(data), bytes});
    }
  }
  void reportOutOfMemory(std::int64_t, std::size_t, std::size_t, c10::Device) override {}
  bool memoryProfilingEnabled() const override { return true; }

  AllocationTrace trace;

 private:
  const Segments& segments_;
};

/// Takes what is never given back out of a trace, and adds up its bytes.
std::uint64_t take_out_kept(AllocationTrace& trace) {
  std::uint64_t kept = 0;
  for (std::size_t i = 0; i < trace.size(); ++i) {
    const AllocationEvent event = trace[i];
    const bool given_back = event.bytes < 0 || std::any_of(
                                                   trace.begin() + static_cast<std::ptrdiff_t>(i), trace.end(),
                                                   [&](const AllocationEvent& later) {
                                                     return later.bytes < 0 && later.address == event.address;
                                                   });
    if (!given_back) {
      kept += static_cast<std::uint64_t>(event.bytes);
      trace.erase(trace.begin() + static_cast<std::ptrdiff_t>(i--));
    }
  }
  return kept;
}

/// One lane: a stream that nobody else uses, and a pool for what is allocated on it.
class CudaLane {
 public:
  explicit CudaLane(c10::DeviceIndex device) : device_(device) {
    check_cuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreate");
  }

  ~CudaLane() {
    static_cast<void>(cudaStreamSynchronize(stream_));
    clear();
    static_cast<void>(cudaStreamDestroy(stream_));
  }
  CudaLane(const CudaLane&) = delete;
  CudaLane& operator=(const CudaLane&) = delete;

  cudaStream_t stream() const { return stream_; }
  std::uint64_t reserved() const { return pool_ ? pool_->segments().reserved() : 0; }
  bool owns(const void* address) const { return pool_ && pool_->segments().contains(address); }
  Refusal take_refused() { return pool_ ? pool_->segments().take_refused() : Refusal(); }

  /// Frees what the lane has. What it did is over on the device.
  void clear() {
    drop_workspaces();
    workspaces_in_ = nullptr;
    pool_.reset();
  }

  void set_capacity(const LaneCapacity& capacity) {
    pool_ = std::make_unique<Pool>(device_, stream_);
    pool_->segments().set_limit(capacity.total());
    if (!pool_->take_arena(capacity.arena)) {
      throw Error("no " + format_bytes(capacity.arena) +
                  " of device memory for activations and workspaces; lower vram_budget to what is free");
    }
  }

  void begin_measuring(std::uint64_t bytes, const LaneCapacity& known, bool overflow) {
    pool_ = std::make_unique<Pool>(device_, stream_);
    pool_->segments().set_limit(bytes);
    if (overflow) {
      pool_->segments().allow_overflow();
    } else { // an arena, so that nothing is refused for want of one piece; what is small lies beside it
      const std::uint64_t spare = bytes - std::min(bytes, known.total());
      const std::uint64_t beside = std::min(bytes, known.small + std::min<std::uint64_t>(spare / 4, 32_MiB));
      pool_->take_arena((bytes - beside) / kDeviceGranularity * kDeviceGranularity);
    }
    recorder_ = std::make_shared<Recorder>(pool_->segments());
  }

  MeasuredCall end_measuring() {
    MeasuredCall measured;
    measured.trace = std::move(recorder_->trace);
    measured.kept = take_out_kept(measured.trace);
    measured.small = pool_->segments().small();
    for (std::size_t which = 0; which < wanted_.size(); ++which) {
      wanted_[which] = wanted_[which] || has_workspace(which);
    }
    recorder_.reset();
    check_cuda(cudaStreamSynchronize(stream_), "waiting for the device");
    clear();
    return measured;
  }

  /// Other lanes will want the workspaces that this one wanted.
  void want_as(const CudaLane& other) { wanted_ = other.wanted_; }

  class Call final : public Lanes::Call {
   public:
    Call(CudaLane& lane, Pool& state)
        : lane_(lane), state_(state), caller_(c10::cuda::getCurrentCUDAStream(lane.device_)), device_(lane.device_) {
      let_wait(lane_.stream_, caller_.stream(), lane_.begun_);
      use_.emplace(*lane_.pool_);
      stream_.emplace(c10::cuda::getStreamFromExternal(lane_.stream_, lane_.device_));
      if (lane_.recorder_) {
        no_profiler_.emplace();
        recording_.emplace(c10::DebugInfoKind::PROFILER_STATE, lane_.recorder_);
      }
      lane_.take_workspaces();
    }

    ~Call() override {
      recording_.reset();
      no_profiler_.reset();
      stream_.reset();
      use_.reset();
      if (!left_) { // an exception: nothing comes out, but the caller's inputs were read
        static_cast<void>(cudaEventRecord(lane_.ended_.event, lane_.stream_));
        static_cast<void>(cudaStreamWaitEvent(caller_.stream(), lane_.ended_.event));
        static_cast<void>(cudaGetLastError()); // what is told is the exception
      }
    }

    std::vector<at::Tensor> keep(const std::vector<at::Tensor>& inner) override {
      std::vector<at::Tensor> kept;
      use_.reset(); // one pool at a time
      {
        const Pool::Use use(state_);
        for (const at::Tensor& tensor : inner) {
          kept.push_back(empty_as(tensor));
        }
      }
      use_.emplace(*lane_.pool_);
      for (std::size_t i = 0; i < inner.size(); ++i) {
        kept[i].copy_(inner[i], /*non_blocking=*/true);
      }
      return kept;
    }

    std::vector<at::Tensor> leave(const std::vector<at::Tensor>& inner) override {
      std::vector<at::Tensor> outer;
      if (!inner.empty()) {
        const c10::cuda::CUDAStreamGuard caller(caller_);
        for (const at::Tensor& tensor : inner) {
          outer.push_back(empty_as(tensor));
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
    Pool& state_;
    c10::cuda::CUDAStream caller_;
    c10::cuda::CUDAGuard device_;
    std::optional<Pool::Use> use_;
    std::optional<c10::cuda::CUDAStreamGuard> stream_;
    std::optional<at::DisableRecordFunctionGuard> no_profiler_;
    std::optional<c10::DebugInfoGuard> recording_;
    bool left_ = false;
  };

 private:
  using Workspaces = at::cuda::WorkspaceMapWithMutex;
  static Workspaces& workspaces(std::size_t which) {
    return which == 0 ? at::cuda::cublas_handle_stream_to_workspace() : at::cuda::cublaslt_handle_stream_to_workspace();
  }

  bool has_workspace(std::size_t which) const {
    Workspaces& all = workspaces(which);
    const std::unique_lock lock(all.mutex);
    return std::any_of(all.map.begin(), all.map.end(),
                       [&](const auto& entry) { return std::get<1>(entry.first) == stream_; });
  }

  void drop_workspaces() {
    for (std::size_t which = 0; which < wanted_.size(); ++which) {
      Workspaces& all = workspaces(which);
      const std::unique_lock lock(all.mutex);
      for (auto entry = all.map.begin(); entry != all.map.end();) {
        entry = std::get<1>(entry->first) == stream_ ? all.map.erase(entry) : std::next(entry);
      }
    }
  }

  /// Handles of cuBLAS belong to threads, and their workspaces to handle and stream: another thread gets another. They
  /// are taken before anything else, so that they lie at the beginning of the arena.
  void take_workspaces() {
    if (thread_ == std::this_thread::get_id() && workspaces_in_ == pool_.get()) {
      return;
    }
    drop_workspaces();
    if (wanted_[0]) {
      at::cuda::getCurrentCUDABlasHandle();
    }
    if (wanted_[1]) {
      at::cuda::getCUDABlasLtWorkspace();
    }
    thread_ = std::this_thread::get_id();
    workspaces_in_ = pool_.get();
  }

  const c10::DeviceIndex device_;
  cudaStream_t stream_ = nullptr;
  std::unique_ptr<Pool> pool_;
  std::shared_ptr<Recorder> recorder_; // while a call is measured
  std::array<bool, 2> wanted_ = {};    // workspaces of cuBLAS, and of cuBLASLt
  std::thread::id thread_;
  const Pool* workspaces_in_ = nullptr;
  Event begun_;
  Event ended_;
};

class CudaLanes final : public Lanes {
 public:
  CudaLanes(c10::Device device, int count) : device_(device) {
    const c10::cuda::CUDAGuard guard(device_);
    for (int i = 0; i < count; ++i) {
      lanes_.push_back(std::make_unique<CudaLane>(device.index()));
    }
    state_ = std::make_unique<Pool>(device.index(), lanes_.front()->stream());
  }

  ~CudaLanes() override {
    const c10::cuda::CUDAGuard guard(device_);
    state_.reset();
    lanes_.clear();
  }

  std::unique_ptr<Call> enter(int lane) override { return std::make_unique<CudaLane::Call>(*lanes_[lane], *state_); }

  bool owns(const void* address) const override {
    return std::any_of(lanes_.begin(), lanes_.end(), [&](const auto& lane) { return lane->owns(address); });
  }
  bool keeps(const void* address) const override { return state_->segments().contains(address); }

  void set_capacity(const LaneCapacity& each, std::uint64_t state) override {
    const c10::cuda::CUDAGuard guard(device_);
    clear();
    state_->segments().set_limit(state);
    for (const auto& lane : lanes_) {
      lane->set_capacity(each);
    }
  }

  void begin_measuring(std::uint64_t bytes, const LaneCapacity& known, bool overflow) override {
    const c10::cuda::CUDAGuard guard(device_);
    clear();
    const std::uint64_t state = state_->segments().reserved();
    state_->segments().set_limit(bytes);
    lanes_.front()->begin_measuring(bytes > state ? bytes - state : 0, known, overflow);
  }

  MeasuredCall end_measuring() override {
    const c10::cuda::CUDAGuard guard(device_);
    MeasuredCall measured = lanes_.front()->end_measuring();
    measured.state = state_->segments().reserved();
    for (const auto& lane : lanes_) {
      lane->want_as(*lanes_.front());
    }
    return measured;
  }

  std::uint64_t held() const override {
    std::uint64_t bytes = state_->segments().reserved();
    for (const auto& lane : lanes_) {
      bytes += lane->reserved();
    }
    return bytes;
  }

  Refusal take_refused(int lane) override {
    const Refusal refusal = lanes_[lane]->take_refused();
    const Refusal of_state = state_->segments().take_refused();
    return refusal.bytes > 0 ? refusal : of_state;
  }

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
  void clear() {
    synchronize();
    for (const auto& lane : lanes_) {
      lane->clear();
    }
  }

  const c10::Device device_;
  std::vector<std::unique_ptr<CudaLane>> lanes_;
  std::unique_ptr<Pool> state_; // what calls have written into the module; there is one lane then
};

} // namespace

std::unique_ptr<Lanes> make_cuda_lanes(c10::Device device, int count) {
  return std::make_unique<CudaLanes>(device, count);
}

} // namespace offload
