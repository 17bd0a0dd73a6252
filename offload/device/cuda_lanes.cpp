#include <ATen/core/functional.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_strided.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <algorithm>
#include <atomic>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>

#include <offload/bytes.h>
#include <offload/device/call_thread.h>
#include <offload/device/cuda_allocator.h>
#include <offload/device/cuda_calls.h>
#include <offload/device/cuda_mark.h>
#include <offload/device/cuda_workspaces.h>
#include <offload/device/lanes.h>
#include <offload/device/memory.h>

namespace offload {

namespace {

/// The geometry of a tensor, or of its contiguous copy where it overlaps itself or has holes.
at::Tensor empty_as(const at::Tensor& tensor) {
  return tensor.is_non_overlapping_and_dense() ? at::empty_strided(tensor.sizes(), tensor.strides(), tensor.options())
                                               : at::empty(tensor.sizes(), tensor.options());
}

void* allocate_page_locked(std::uint64_t bytes) {
  void* data = nullptr;
  return worked(cudaHostAlloc(&data, bytes, cudaHostAllocDefault)) ? data : nullptr;
}

std::shared_ptr<LaneMemory> make_memory(c10::DeviceIndex device, std::shared_ptr<Mutex> growth,
                                        std::function<bool(std::uint64_t)> may_hold) {
  LaneMemory::Callbacks callbacks{.growth = std::move(growth), .may_hold = std::move(may_hold), .make_free = [] {
                                    c10::cuda::CUDACachingAllocator::emptyCache();
                                  }};
  const auto free_page_locked = [](void* data) { worked(cudaFreeHost(data)); }; // or the driver is gone
  return std::make_shared<LaneMemory>(make_device_pages(device), std::move(callbacks),
                                      HostLoans::Source{allocate_page_locked, free_page_locked});
}

/// One lane. What a call does with its memory comes, on the device, after what the call before did: CudaCalls sees to
/// that, whatever their streams.
class CudaLane {
 public:
  CudaLane(int number, c10::DeviceIndex device, CudaCalls& calls, std::shared_ptr<LaneMemory> memory)
      : number_(number), device_(device), calls_(calls), memory_(std::move(memory)), known_(memory_) {}

  LaneMemory& memory() const { return *memory_; }
  CallThread& thread() { return thread_; }

  /// Gives back pages that are not given out. A lane that rests gives those of its workspaces as well, and does nothing
  /// when asked for what one in a call has. The caller holds the mutex of growth.
  enum class Which { resting, in_call };
  void trim(Which which) {
    const std::unique_lock rests(in_use_, std::try_to_lock);
    if (rests.owns_lock() != (which == Which::resting)) {
      return;
    }
    if (rests.owns_lock()) {
      workspaces_.drop();
    }
    memory_->trim([this] { calls_.synchronize(number_); });
  }

  bool wants_workspaces() const { return wanted_; }
  void want_workspaces() { wanted_ = true; }

  /// See Note [Guards of a call] in runtime/executor.cpp: for the order of members, too.
  class Call final : public Lanes::Call {
   public:
    Call(CudaLane& lane, std::shared_ptr<LaneMemory> state, Lanes::Overflow overflow, bool first)
        : lane_(lane),
          state_(std::move(state)),
          in_use_(lane.in_use_),
          device_(lane.device_),
          caller_(c10::cuda::getCurrentCUDAStream(lane.device_)),
          call_(lane.calls_.begin(lane.number_, caller_.stream())),
          overflow_(overflow),
          first_(first) {
      try {
        lane_.memory_->begin_call(overflow, first ? &trace_ : nullptr);
        state_->begin_call(Lanes::Overflow::stop);
        CudaWorkspaces::find_handle(caller_.stream());
        scope_.emplace(lane_.memory_, caller_.device(), caller_.stream());
        lane_.workspaces_.bring(caller_.stream(), lane_.wanted_, *lane_.memory_);
      } catch (const LaneOverflow&) { // known to overflowed(), and reported as the call goes on
      } catch (...) {
        end();
        throw;
      }
    }

    ~Call() override {
      try {
        end();
      } catch (const std::exception&) { // the device is gone
      }
    }

    std::vector<at::Tensor> retain(const std::vector<at::Tensor>& inner) override {
      std::optional<MemoryScope> state(std::in_place, state_, caller_.device(), caller_.stream());
      std::vector<at::Tensor> retained = c10::fmap(inner, empty_as);
      state.reset();
      return copy(inner, std::move(retained));
    }

    std::vector<at::Tensor> detach(const std::vector<at::Tensor>& inner) override {
      scope_.reset(); // this may be a call within another: its memory is the caller's then
      std::vector<at::Tensor> outer = c10::fmap(inner, empty_as);
      scope_.emplace(lane_.memory_, caller_.device(), caller_.stream());
      return copy(inner, std::move(outer));
    }

    std::unique_ptr<LaneClock> make_clock() override {
      const auto mark = [device = lane_.device_, stream = caller_.stream(), events = lane_.calls_.timed_events()] {
        return mark_stream(device, stream, *events);
      };
      return std::make_unique<LaneClock>(mark, LaneClock::Thread::enqueues);
    }

    bool overflowed() const override { return lane_.memory_->overflowed() || state_->overflowed(); }

    bool must_stop() const override { return overflow_ == Lanes::Overflow::stop && overflowed(); }

    CallMemory end() override {
      if (ended_) {
        return memory_;
      }
      ended_ = true;
      std::exception_ptr failure;
      const auto attempt = [&](const auto& work) { // what comes after it has to be done all the same
        try {
          work();
        } catch (const std::exception&) {
          failure = failure ? failure : std::current_exception();
        }
      };
      attempt([&] { lane_.workspaces_.take_back(caller_.stream(), *lane_.memory_); });
      scope_.reset();
      attempt([&] { call_->end(); });
      if (lane_.memory_->overflowed()) {
        worked(cudaStreamSynchronize(caller_.stream())); // it may have been lent what goes now; or the device is gone
      }
      const bool had_workspaces = lane_.wanted_;
      std::uint64_t more = 0;
      attempt([&] { more = lane_.record_workspaces(first_ ? &trace_ : nullptr); });
      attempt([&] { memory_ = lane_.memory_->end_call(); });
      memory_.bytes += more;
      const CallMemory state = state_->end_call();
      memory_.overflowed = memory_.overflowed || state.overflowed;
      memory_.by_device = memory_.by_device || state.by_device;
      if (lane_.wanted_ && !had_workspaces) {
        lane_.workspaces_.drop(); // they lie where this call found room
      }
      if (failure) {
        std::rethrow_exception(failure);
      }
      return memory_;
    }

   private:
    static std::vector<at::Tensor> copy(const std::vector<at::Tensor>& from, std::vector<at::Tensor> to) {
      for (std::size_t i = 0; i < from.size(); ++i) {
        to[i].copy_(from[i], /*non_blocking=*/true);
      }
      return to;
    }

    CudaLane& lane_;
    const std::shared_ptr<LaneMemory> state_;
    const std::lock_guard<std::mutex> in_use_;
    const c10::cuda::CUDAGuard device_;
    const c10::cuda::CUDAStream caller_;
    const CudaCallPtr call_;
    const Lanes::Overflow overflow_;
    const bool first_;
    AllocationTrace trace_;
    CallMemory memory_;
    bool ended_ = false;
    std::optional<MemoryScope> scope_;
  };

 private:
  /// When a call wants workspaces for the first time, all calls take all kinds first from then on, so that what a call
  /// takes does not depend on those before it. Returns the bytes that calls take more by that than this one has shown;
  /// a `trace` shows them itself, kept from its beginning.
  std::uint64_t record_workspaces(AllocationTrace* trace) {
    if (wanted_ || !(workspaces_.has(0) || workspaces_.has(1))) {
      return 0;
    }
    wanted_ = true;
    std::uint64_t bytes = 0;
    for (std::size_t kind = 0; kind < CudaWorkspaces::kKinds; ++kind) {
      const std::size_t of_kind = CudaWorkspaces::bytes_of(kind);
      bytes += align_up(of_kind, kDeviceGranularity);
      if (trace && !workspaces_.has(kind)) {
        trace->push_back({kNoOffset - kind, static_cast<std::int64_t>(of_kind)});
      }
    }
    return trace ? 0 : bytes;
  }

  static constexpr std::uint64_t kNoOffset = ~std::uint64_t{0}; // of no part of an arena
  const int number_;
  const c10::DeviceIndex device_;
  CudaCalls& calls_;
  const std::shared_ptr<LaneMemory> memory_;
  const KnownMemory known_;
  std::mutex in_use_;   // held by the call that is under way, and by who takes the workspaces of a lane that rests
  bool wanted_ = false; // workspaces of libraries
  CudaWorkspaces workspaces_;
  CallThread thread_;
};

class CudaLanes final : public Lanes {
 public:
  CudaLanes(c10::Device device, int count, std::shared_ptr<LaneGate> gate)
      : device_(device), gate_(std::move(gate)), calls_(std::make_shared<CudaCalls>(count)) {
    install_cuda_allocator();
    const c10::cuda::CUDAGuard guard(device_);
    for (int lane = 0; lane < count; ++lane) {
      lanes_.push_back(std::make_unique<CudaLane>(
          lane, device.index(), *calls_, make_memory(device.index(), growth_, [this, lane](std::uint64_t bytes) {
            return gate_->extend(lane, bytes) && make_room(lanes_[lane]->memory().held(), bytes, lane);
          })));
    }
    state_ = make_memory(device.index(), growth_, [this](std::uint64_t bytes) { // in a call of the only lane
      return gate_->set_state(std::max(bytes, state_->held())) && make_room(state_->held(), bytes, 0);
    });
    known_state_.emplace(state_);
  }

  ~CudaLanes() override {
    const c10::cuda::CUDAGuard guard(device_);
    try {
      release();
    } catch (const std::exception&) { // the device is gone
    }
  }

  std::unique_ptr<Call> enter(int lane, Overflow overflow, bool first) override {
    return std::make_unique<CudaLane::Call>(*lanes_[lane], state_, overflow, first);
  }

  void run(int lane, const std::function<void()>& work) override {
    if (is_only_caller()) {
      work();
    } else {
      lanes_[lane]->thread().run(device_, work);
    }
  }

  bool owns(const void* address) const override {
    return std::any_of(lanes_.begin(), lanes_.end(),
                       [&](const auto& lane) { return lane->memory().contains(address); });
  }
  bool retains(const void* address) const override { return state_->contains(address); }

  void release() override {
    const c10::cuda::CUDAGuard guard(device_);
    const Lock growth(*growth_);
    const bool wanted =
        std::any_of(lanes_.begin(), lanes_.end(), [](const auto& lane) { return lane->wants_workspaces(); });
    for (const auto& lane : lanes_) {
      if (wanted) {
        lane->want_workspaces(); // for calls as on that lane
      }
      lane->trim(CudaLane::Which::resting);
    }
    state_->trim([this] { calls_->synchronize(); });
    gate_->set_state(state_->held());
  }

  bool trim_to_room() override {
    const c10::cuda::CUDAGuard guard(device_);
    const Lock growth(*growth_);
    return make_room(0, 0, /*lane=*/-1);
  }

  std::uint64_t held() const override {
    std::uint64_t bytes = state_->held();
    for (const auto& lane : lanes_) {
      bytes += lane->memory().held();
    }
    return bytes;
  }
  std::uint64_t state() const override { return state_->held(); }

  void synchronize() override {
    const c10::cuda::CUDAGuard guard(device_);
    calls_->synchronize();
  }

  std::shared_ptr<const CudaCalls> calls() const override { return calls_; }

  const void* callers_stream() const override { return c10::cuda::getCurrentCUDAStream(device_.index()).stream(); }

  void refuse_from(int lane, std::uint64_t n) override { lanes_[lane]->memory().refuse_from(n); }

 private:
  /// False for good once a second thread has come: handles of libraries are then made for threads of lanes only.
  bool is_only_caller() {
    std::thread::id first;
    const std::thread::id self = std::this_thread::get_id();
    if (!first_caller_.compare_exchange_strong(first, self) && first != self) {
      others_came_ = true;
    }
    return !others_came_;
  }

  /// What other lanes keep and do not use gives way, first that of lanes that rest. `now` of `bytes` are held already.
  bool make_room(std::uint64_t now, std::uint64_t bytes, int lane) {
    const auto fits = [&] { return held() - now + bytes <= gate_->room(); };
    for (const CudaLane::Which which : {CudaLane::Which::resting, CudaLane::Which::in_call}) {
      for (int other = 0; other < static_cast<int>(lanes_.size()) && !fits(); ++other) {
        if (other != lane) {
          lanes_[other]->trim(which);
        }
      }
    }
    return fits();
  }

  const c10::Device device_;
  const std::shared_ptr<LaneGate> gate_;
  const std::shared_ptr<CudaCalls> calls_;
  const std::shared_ptr<Mutex> growth_ = std::make_shared<Mutex>(); // of all their memory
  std::vector<std::unique_ptr<CudaLane>> lanes_;
  std::shared_ptr<LaneMemory> state_; // what calls have written into the module; there is one lane then
  std::optional<KnownMemory> known_state_;
  std::atomic<std::thread::id> first_caller_;
  std::atomic<bool> others_came_ = false;
};

} // namespace

std::unique_ptr<Lanes> make_cuda_lanes(c10::Device device, int count, std::shared_ptr<LaneGate> gate) {
  return std::make_unique<CudaLanes>(device, count, std::move(gate));
}

} // namespace offload
