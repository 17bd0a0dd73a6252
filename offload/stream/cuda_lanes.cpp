#include <ATen/ops/empty_strided.h>
#include <ATen/record_function.h>
#include <c10/core/Allocator.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <c10/util/ThreadLocalDebugInfo.h>

#include <algorithm>
#include <mutex>

#include <offload/bytes.h>
#include <offload/error.h>
#include <offload/stream/cuda_calls.h>
#include <offload/stream/cuda_workspaces.h>
#include <offload/stream/lanes.h>
#include <offload/stream/memory.h>
#include <offload/stream/pool.h>

namespace offload {

namespace {

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

void wait_for(cudaStream_t stream) { check_cuda(cudaStreamSynchronize(stream), "waiting for the device"); }

/// One lane: a pool for what is allocated in its calls, on the stream where they are made.
///
/// A call that is measured is made on a stream that has been used for nothing else, so that what it finds there is what
/// every call will find. The host waits for it: measuring is slow anyway.
class CudaLane {
 public:
  CudaLane(int number, c10::DeviceIndex device, CudaCalls& calls, cudaStream_t measuring)
      : number_(number), device_(device), calls_(calls), measuring_(measuring) {}

  std::uint64_t reserved() const { return pool_ ? pool_->segments().reserved() : 0; }
  bool owns(const void* address) const { return pool_ && pool_->segments().contains(address); }
  Refusal take_refused() { return pool_ ? pool_->segments().take_refused() : Refusal(); }

  /// Frees what the lane has. What it did is over on the device.
  void clear() {
    workspaces_.drop();
    pool_.reset();
  }

  void set_capacity(const LaneCapacity& capacity) {
    capacity_ = capacity;
    make_pool(c10::cuda::getCurrentCUDAStream(device_).stream());
  }

  void begin_measuring(std::uint64_t bytes, const LaneCapacity& known, bool overflow) {
    pool_ = std::make_unique<Pool>(device_, measuring_);
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
    const CudaWorkspaces::Wanted had = workspaces_.had();
    for (std::size_t kind = 0; kind < had.size(); ++kind) {
      if (had[kind] && !wanted_[kind] && CudaWorkspaces::bytes_of(kind) <= kSmallBlockBytes) {
        measured.small += kSmallPieceBytes; // later calls have it from the beginning, beside what was gone by then
      }
      wanted_[kind] = wanted_[kind] || had[kind];
    }
    recorder_.reset();
    wait_for(measuring_);
    clear();
    return measured;
  }

  /// Other lanes will want the workspaces that this one wanted.
  void want_as(const CudaLane& other) { wanted_ = other.wanted_; }

  class Call final : public Lanes::Call {
   public:
    Call(CudaLane& lane, Pool& state)
        : lane_(lane), state_(state), caller_(c10::cuda::getCurrentCUDAStream(lane.device_)), device_(lane.device_) {
      if (lane_.recorder_) {
        wait_for(caller_);
        stream_.emplace(c10::cuda::getStreamFromExternal(lane_.measuring_, lane_.device_));
      } else if (lane_.pool_->stream() != caller_.stream()) {
        lane_.make_pool(caller_.stream());
      }
      call_ = lane_.calls_.begin(lane_.number_, lane_.pool_->stream());
      use_.emplace(*lane_.pool_);
      if (lane_.recorder_) {
        no_profiler_.emplace();
        recording_.emplace(c10::DebugInfoKind::PROFILER_STATE, lane_.recorder_);
      }
      try {
        lane_.workspaces_.bring(call_->stream(), lane_.wanted_, *lane_.pool_);
      } catch (...) {
        end();
        throw;
      }
    }

    ~Call() override { end(); }

    std::vector<at::Tensor> keep(const std::vector<at::Tensor>& inner) override {
      std::vector<at::Tensor> kept;
      {
        // What is kept is written in calls only, of which each comes after the one before, whatever their streams.
        const c10::cuda::CUDAStreamGuard stream(c10::cuda::getStreamFromExternal(state_.stream(), lane_.device_));
        const Pool::Use use(state_);
        for (const at::Tensor& tensor : inner) {
          kept.push_back(empty_as(tensor));
        }
      }
      for (std::size_t i = 0; i < inner.size(); ++i) {
        kept[i].copy_(inner[i], /*non_blocking=*/true);
      }
      return kept;
    }

    std::vector<at::Tensor> leave(const std::vector<at::Tensor>& inner) override {
      std::vector<at::Tensor> outer;
      use_.reset();
      {
        const c10::cuda::CUDAStreamGuard caller(caller_);
        for (const at::Tensor& tensor : inner) {
          outer.push_back(empty_as(tensor));
        }
      }
      if (stream_) { // what the caller's stream still does with memory that has just been freed there comes first
        wait_for(caller_);
      }
      use_.emplace(*lane_.pool_);
      for (std::size_t i = 0; i < inner.size(); ++i) {
        outer[i].copy_(inner[i], /*non_blocking=*/true);
      }
      if (stream_) {
        wait_for(call_->stream());
      }
      return outer;
    }

   private:
    void end() {
      recording_.reset();
      no_profiler_.reset();
      lane_.workspaces_.take_back(call_->stream(), *lane_.pool_);
      use_.reset();
      call_->end();
    }

    CudaLane& lane_;
    Pool& state_;
    const c10::cuda::CUDAStream caller_;
    const c10::cuda::CUDAGuard device_;
    std::optional<c10::cuda::CUDAStreamGuard> stream_; // where it is not the caller's
    CudaCallPtr call_;
    std::optional<Pool::Use> use_;
    std::optional<at::DisableRecordFunctionGuard> no_profiler_;
    std::optional<c10::DebugInfoGuard> recording_;
  };

 private:
  /// For calls on `stream`, with the memory of the pool that there is, if any.
  void make_pool(cudaStream_t stream) {
    workspaces_.drop();
    auto pool = std::make_unique<Pool>(device_, stream);
    pool->segments().set_limit(capacity_.total());
    if (pool_) {
      pool->take_over(*pool_);
    }
    pool_ = std::move(pool);
    if (!pool_->take_arena(capacity_.arena)) {
      throw Error("no " + format_bytes(capacity_.arena) +
                  " of device memory for activations and workspaces; lower vram_budget to what is free");
    }
  }

  const int number_;
  const c10::DeviceIndex device_;
  CudaCalls& calls_;
  cudaStream_t const measuring_;
  LaneCapacity capacity_;
  std::unique_ptr<Pool> pool_;
  std::shared_ptr<Recorder> recorder_; // while a call is measured
  CudaWorkspaces::Wanted wanted_ = {};
  CudaWorkspaces workspaces_;
};

class CudaLanes final : public Lanes {
 public:
  CudaLanes(c10::Device device, int count) : device_(device), calls_(std::make_shared<CudaCalls>(count)) {
    const c10::cuda::CUDAGuard guard(device_);
    own_.emplace();
    for (int lane = 0; lane < count; ++lane) {
      lanes_.push_back(std::make_unique<CudaLane>(lane, device.index(), *calls_, own_->get()));
    }
    state_ = std::make_unique<Pool>(device.index(), own_->get());
  }

  ~CudaLanes() override {
    const c10::cuda::CUDAGuard guard(device_);
    try {
      clear();
    } catch (const std::exception&) { // the device is gone
    }
    state_.reset();
    lanes_.clear();
    own_.reset();
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
    const c10::cuda::CUDAGuard guard(device_);
    calls_->synchronize();
  }

  std::shared_ptr<const CudaCalls> calls() const override { return calls_; }

  const void* callers_stream() const override { return c10::cuda::getCurrentCUDAStream(device_.index()).stream(); }

 private:
  void clear() {
    synchronize();
    for (const auto& lane : lanes_) {
      lane->clear();
    }
  }

  const c10::Device device_;
  const std::shared_ptr<CudaCalls> calls_;
  std::optional<OwnStream> own_; // where calls are measured, and that what is kept is allocated for
  std::vector<std::unique_ptr<CudaLane>> lanes_;
  std::unique_ptr<Pool> state_; // what calls have written into the module; there is one lane then
};

} // namespace

std::unique_ptr<Lanes> make_cuda_lanes(c10::Device device, int count) {
  return std::make_unique<CudaLanes>(device, count);
}

} // namespace offload
