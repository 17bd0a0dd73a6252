#include <offload/stream/cuda_allocator.h>

#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAStream.h>

#include <algorithm>
#include <atomic>
#include <mutex>
#include <shared_mutex>
#include <unordered_map>
#include <utility>
#include <vector>

namespace offload {

namespace {

using c10::cuda::CUDACachingAllocator::CUDAAllocator;

/// What a thread that computes a call carries with it; autograd hands it on to the threads that work for it.
struct ScopeInfo final : c10::DebugInfoBase {
  ScopeInfo(std::shared_ptr<LaneMemory> lane, c10::Device on, cudaStream_t of_call)
      : memory(std::move(lane)), device(on), stream(of_call) {}
  const std::shared_ptr<LaneMemory> memory;
  const c10::Device device;
  cudaStream_t const stream;
};

constexpr auto kScope = c10::DebugInfoKind::INFERENCE_CONTEXT; // PyTorch itself has no use for it

/// Memory that the process knows, whether its owner lives or not.
class Registry {
 public:
  static Registry& get() {
    static Registry& registry = *new Registry; // for tensors that outlive main()
    return registry;
  }

  void add(std::shared_ptr<LaneMemory> memory) {
    const std::unique_lock lock(mutex_);
    known_.push_back(std::move(memory));
  }

  void abandon(LaneMemory& memory) {
    memory.abandon();
    forget_if_empty(memory);
  }

  bool contains(const void* data) const { return find(data) != nullptr; }

  /// False when it is none of ours.
  bool free(void* data) {
    const std::shared_ptr<LaneMemory> memory = find(data);
    if (!memory) {
      return false;
    }
    wait_for_recorded_streams(data);
    memory->free(data);
    if (memory->abandoned()) {
      forget_if_empty(*memory);
    }
    return true;
  }

  void record_stream(const void* data, cudaStream_t stream) {
    const std::unique_lock lock(mutex_);
    recorded_[data].push_back(stream);
    any_recorded_ = true;
  }

 private:
  std::shared_ptr<LaneMemory> find(const void* data) const {
    const std::shared_lock lock(mutex_);
    const auto known =
        std::find_if(known_.begin(), known_.end(), [&](const auto& memory) { return memory->contains(data); });
    return known == known_.end() ? nullptr : *known;
  }

  /// What was allocated last may still be in use on the device, by somebody whom no lane knows.
  void forget_if_empty(const LaneMemory& gone) {
    const std::unique_lock lock(mutex_);
    const auto known =
        std::find_if(known_.begin(), known_.end(), [&](const auto& memory) { return memory.get() == &gone; });
    if (known != known_.end() && gone.empty()) {
      if (cudaDeviceSynchronize() != cudaSuccess) {
        static_cast<void>(cudaGetLastError()); // the driver is gone
      }
      known_.erase(known);
    }
  }

  /// Operators of models hardly ever record streams: the host may wait for them.
  void wait_for_recorded_streams(const void* data) {
    if (!any_recorded_) {
      return;
    }
    std::vector<cudaStream_t> streams;
    {
      const std::unique_lock lock(mutex_);
      const auto recorded = recorded_.find(data);
      if (recorded == recorded_.end()) {
        return;
      }
      streams = std::move(recorded->second);
      recorded_.erase(recorded);
      any_recorded_ = !recorded_.empty();
    }
    for (cudaStream_t const stream : streams) {
      if (cudaStreamSynchronize(stream) != cudaSuccess) {
        static_cast<void>(cudaGetLastError()); // a stream that is gone has nothing left to do
      }
    }
  }

  mutable std::shared_mutex mutex_;
  std::vector<std::shared_ptr<LaneMemory>> known_;
  std::unordered_map<const void*, std::vector<cudaStream_t>> recorded_;
  std::atomic<bool> any_recorded_ = false;
};

void delete_ours(void* data);

class FrontAllocator final : public CUDAAllocator {
 public:
  explicit FrontAllocator(CUDAAllocator& behind) : behind_(behind) {}

  c10::DataPtr allocate(std::size_t bytes) override {
    const ScopeInfo* scope = current_scope(bytes);
    if (!scope || c10::cuda::getCurrentCUDAStream(scope->device.index()).stream() != scope->stream) {
      return behind_.allocate(bytes);
    }
    void* data = scope->memory->allocate(bytes);
    return {data, data, &delete_ours, scope->device};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &delete_ours; }
  void copy_data(void* dest, const void* src, std::size_t count) const override { behind_.copy_data(dest, src, count); }

  void* raw_alloc(std::size_t bytes) override {
    const ScopeInfo* scope = current_scope(bytes);
    return scope && c10::cuda::getCurrentCUDAStream(scope->device.index()).stream() == scope->stream
               ? scope->memory->allocate(bytes)
               : behind_.raw_alloc(bytes);
  }
  void* raw_alloc_with_stream(std::size_t bytes, cudaStream_t stream) override {
    const ScopeInfo* scope = current_scope(bytes);
    return scope && scope->stream == stream ? scope->memory->allocate(bytes)
                                            : behind_.raw_alloc_with_stream(bytes, stream);
  }
  void raw_delete(void* data) override {
    if (data && !Registry::get().free(data)) {
      behind_.raw_delete(data);
    }
  }

  using CUDAAllocator::recordStream;
  void recordStream(const c10::DataPtr& data, c10::cuda::CUDAStream stream) override {
    if (data.get_deleter() == &delete_ours) {
      Registry::get().record_stream(data.get(), stream.stream());
    } else {
      behind_.recordStream(data, stream);
    }
  }

  /// An operator of ours sees a device with memory to spare, always the same: what it chooses depends on nothing else.
  void cacheInfo(c10::DeviceIndex device, std::size_t* largest) override {
    behind_.cacheInfo(device, largest);
    if (const ScopeInfo* scope = current_scope(1); scope && scope->device.index() == device) {
      *largest = scope->memory->addresses();
    }
  }

  // The rest is passed on as it is.
  bool initialized() override { return behind_.initialized(); }
  void init(int devices) override { behind_.init(devices); }
  void emptyCache(c10::MempoolId_t pool) override { behind_.emptyCache(pool); }
  c10::CachingDeviceAllocator::DeviceStats getDeviceStats(c10::DeviceIndex device) override {
    return behind_.getDeviceStats(device);
  }
  void resetAccumulatedStats(c10::DeviceIndex device) override { behind_.resetAccumulatedStats(device); }
  void resetPeakStats(c10::DeviceIndex device) override { behind_.resetPeakStats(device); }
  std::pair<std::size_t, std::size_t> getMemoryInfo(c10::DeviceIndex device) override {
    return behind_.getMemoryInfo(device);
  }
  double getMemoryFraction(c10::DeviceIndex device) override { return behind_.getMemoryFraction(device); }
  void setMemoryFraction(double fraction, c10::DeviceIndex device) override {
    behind_.setMemoryFraction(fraction, device);
  }
  std::vector<c10::cuda::CUDACachingAllocator::StreamSegmentSize> getExpandableSegmentSizes(
      c10::DeviceIndex device) override {
    return behind_.getExpandableSegmentSizes(device);
  }
  void enable(bool value) override { behind_.enable(value); }
  bool isEnabled() const override { return behind_.isEnabled(); }
  void* getBaseAllocation(void* data, std::size_t* bytes) override { return behind_.getBaseAllocation(data, bytes); }
  c10::cuda::CUDACachingAllocator::SnapshotInfo snapshot(c10::MempoolId_t pool, bool traces) override {
    return behind_.snapshot(pool, traces);
  }
  void beginAllocateToPool(c10::DeviceIndex device, c10::MempoolId_t pool,
                           std::function<bool(cudaStream_t)> filter) override {
    behind_.beginAllocateToPool(device, pool, std::move(filter));
  }
  void endAllocateToPool(c10::DeviceIndex device, c10::MempoolId_t pool) override {
    behind_.endAllocateToPool(device, pool);
  }
  void releasePool(c10::DeviceIndex device, c10::MempoolId_t pool) override { behind_.releasePool(device, pool); }
  int getPoolUseCount(c10::DeviceIndex device, c10::MempoolId_t pool) override {
    return behind_.getPoolUseCount(device, pool);
  }
  void createOrIncrefPool(c10::DeviceIndex device, c10::MempoolId_t pool,
                          std::shared_ptr<CUDAAllocator> allocator) override {
    behind_.createOrIncrefPool(device, pool, std::move(allocator));
  }
  void setUseOnOOM(c10::DeviceIndex device, c10::MempoolId_t pool, bool use) override {
    behind_.setUseOnOOM(device, pool, use);
  }
  void setNoSplit(c10::DeviceIndex device, c10::MempoolId_t pool) override { behind_.setNoSplit(device, pool); }
  bool checkPoolLiveAllocations(c10::DeviceIndex device, c10::MempoolId_t pool,
                                const std::unordered_set<void*>& expected) override {
    return behind_.checkPoolLiveAllocations(device, pool, expected);
  }
  c10::cuda::CUDACachingAllocator::ShareableHandle shareIpcHandle(void* data) override {
    return behind_.shareIpcHandle(data);
  }
  std::shared_ptr<void> getIpcDevPtr(std::string handle) override { return behind_.getIpcDevPtr(std::move(handle)); }
  bool isHistoryEnabled() override { return behind_.isHistoryEnabled(); }
  void recordHistory(bool enabled, c10::cuda::CUDACachingAllocator::CreateContextFn recorder, std::size_t entries,
                     c10::cuda::CUDACachingAllocator::RecordContext when, bool clear,
                     const std::vector<std::string>& skip) override {
    behind_.recordHistory(enabled, recorder, entries, when, clear, skip);
  }
  void recordAnnotation(const std::vector<std::pair<std::string, std::string>>& annotation) override {
    behind_.recordAnnotation(annotation);
  }
  void pushCompileContext(std::string& context) override { behind_.pushCompileContext(context); }
  void popCompileContext() override { behind_.popCompileContext(); }
  void setUserMetadata(const std::string& metadata) override { behind_.setUserMetadata(metadata); }
  std::string getUserMetadata() override { return behind_.getUserMetadata(); }
  void attachOutOfMemoryObserver(c10::cuda::CUDACachingAllocator::OutOfMemoryObserver observer) override {
    behind_.attachOutOfMemoryObserver(std::move(observer));
  }
  void attachAllocatorTraceTracker(c10::cuda::CUDACachingAllocator::AllocatorTraceTracker tracker) override {
    behind_.attachAllocatorTraceTracker(std::move(tracker));
  }
  void enablePeerAccess(c10::DeviceIndex device, c10::DeviceIndex other) override {
    behind_.enablePeerAccess(device, other);
  }
  cudaError_t memcpyAsync(void* dst, int dst_device, const void* src, int src_device, std::size_t bytes,
                          cudaStream_t stream, bool peers) override {
    // Pages of ours are mapped for their own device only: between devices the driver has to help.
    const bool between = dst_device != src_device && (Registry::get().contains(dst) || Registry::get().contains(src));
    return behind_.memcpyAsync(dst, dst_device, src, src_device, bytes, stream, peers && !between);
  }
  std::shared_ptr<c10::cuda::CUDACachingAllocator::AllocatorState> getCheckpointState(c10::DeviceIndex device,
                                                                                      c10::MempoolId_t pool) override {
    return behind_.getCheckpointState(device, pool);
  }
  c10::cuda::CUDACachingAllocator::CheckpointDelta setCheckpointPoolState(
      c10::DeviceIndex device, std::shared_ptr<c10::cuda::CUDACachingAllocator::AllocatorState> state) override {
    return behind_.setCheckpointPoolState(device, std::move(state));
  }
  std::string name() override { return behind_.name(); }

 private:
  /// Of a thread that allocates from a lane; null for all others, and for what needs no memory.
  static const ScopeInfo* current_scope(std::size_t bytes) {
    const auto* scope = dynamic_cast<const ScopeInfo*>(c10::ThreadLocalDebugInfo::get(kScope));
    return scope && bytes > 0 && scope->device.index() == c10::cuda::current_device() ? scope : nullptr;
  }

  CUDAAllocator& behind_;
};

std::atomic<FrontAllocator*> front = nullptr;

void delete_ours(void* data) { front.load()->raw_delete(data); }

} // namespace

void install_cuda_allocator() {
  static std::once_flag once;
  std::call_once(once, [] {
    front = new FrontAllocator(*c10::cuda::CUDACachingAllocator::get()); // for tensors that outlive main()
    c10::SetAllocator(c10::kCUDA, front);
    c10::cuda::CUDACachingAllocator::allocator = front;
  });
}

MemoryScope::MemoryScope(std::shared_ptr<LaneMemory> memory, c10::Device device, cudaStream_t stream)
    : guard_(kScope, std::make_shared<ScopeInfo>(std::move(memory), device, stream)) {}

KnownMemory::KnownMemory(std::shared_ptr<LaneMemory> memory) : memory_(std::move(memory)) {
  Registry::get().add(memory_);
}

KnownMemory::~KnownMemory() { Registry::get().abandon(*memory_); }

} // namespace offload
