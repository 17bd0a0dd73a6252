#include <offload/device/cuda_allocator.h>

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

#include <offload/device/cuda_calls.h>
#include <offload/device/forwarding_allocator.h>
#include <offload/device/torch_versions.h>

namespace offload {

namespace {

/// What a thread that computes a call carries with it; autograd hands it on to the threads that work for it.
struct ScopeInfo final : c10::DebugInfoBase {
  ScopeInfo(std::shared_ptr<LaneMemory> lane, c10::Device on, cudaStream_t of_call)
      : memory(std::move(lane)), device(on), stream(of_call) {}
  const std::shared_ptr<LaneMemory> memory;
  const c10::Device device;
  cudaStream_t const stream;
};

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
      drop_if_empty(*memory);
    }
    return true;
  }

  /// What was allocated last may still be in use on the device, by somebody whom no lane knows.
  void drop_if_empty(const LaneMemory& gone) {
    const std::unique_lock lock(mutex_);
    if (gone.empty()) {
      worked(cudaDeviceSynchronize()); // or the driver is gone
      std::erase_if(known_, [&](const auto& memory) { return memory.get() == &gone; });
    }
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

  /// Operators of models hardly ever record streams: the host may wait for them.
  void wait_for_recorded_streams(const void* data) {
    if (!any_recorded_) {
      return;
    }
    std::unique_lock lock(mutex_);
    const auto recorded = recorded_.extract(data);
    any_recorded_ = !recorded_.empty();
    lock.unlock();
    if (recorded) {
      for (cudaStream_t const stream : recorded.mapped()) {
        worked(cudaStreamSynchronize(stream)); // or it is gone, and has nothing left to do
      }
    }
  }

  mutable std::shared_mutex mutex_;
  std::vector<std::shared_ptr<LaneMemory>> known_;
  std::unordered_map<const void*, std::vector<cudaStream_t>> recorded_;
  std::atomic<bool> any_recorded_ = false;
};

void delete_ours(void* data);

class FrontAllocator final : public ForwardingAllocator {
 public:
  using ForwardingAllocator::ForwardingAllocator;

  c10::DataPtr allocate(std::size_t bytes) override {
    const ScopeInfo* scope = scope_on_current_stream(bytes);
    if (!scope) {
      return behind().allocate(bytes);
    }
    void* data = scope->memory->allocate(bytes);
    return {data, data, &delete_ours, scope->device};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &delete_ours; }

  void* raw_alloc(std::size_t bytes) override {
    const ScopeInfo* scope = scope_on_current_stream(bytes);
    return scope ? scope->memory->allocate(bytes) : behind().raw_alloc(bytes);
  }
  void* raw_alloc_with_stream(std::size_t bytes, cudaStream_t stream) override {
    const ScopeInfo* scope = current_scope(bytes);
    return scope && scope->stream == stream ? scope->memory->allocate(bytes)
                                            : behind().raw_alloc_with_stream(bytes, stream);
  }
  void raw_delete(void* data) override {
    if (data && !Registry::get().free(data)) {
      behind().raw_delete(data);
    }
  }

  using ForwardingAllocator::recordStream;
  void recordStream(const c10::DataPtr& data, c10::cuda::CUDAStream stream) override {
    if (data.get_deleter() == &delete_ours) {
      Registry::get().record_stream(data.get(), stream.stream());
    } else {
      behind().recordStream(data, stream);
    }
  }

  /// An operator of ours sees a device with memory to spare, always the same: what it chooses depends on nothing else.
  void cacheInfo(c10::DeviceIndex device, std::size_t* largest) override {
    behind().cacheInfo(device, largest);
    if (const ScopeInfo* scope = current_scope(1); scope && scope->device.index() == device) {
      *largest = scope->memory->addresses();
    }
  }

  /// Pages of ours are mapped for their own device only: between devices the driver has to help.
  cudaError_t memcpyAsync(void* dst, int dst_device, const void* src, int src_device, std::size_t bytes,
                          cudaStream_t stream, bool peers) override {
    const bool between = dst_device != src_device && (Registry::get().contains(dst) || Registry::get().contains(src));
    return behind().memcpyAsync(dst, dst_device, src, src_device, bytes, stream, peers && !between);
  }

 private:
  /// Of a thread that allocates from a lane; null for all others, and for what needs no memory.
  static const ScopeInfo* current_scope(std::size_t bytes) {
    const auto* scope = dynamic_cast<const ScopeInfo*>(c10::ThreadLocalDebugInfo::get(kMemoryScopeSlot));
    return scope && bytes > 0 && scope->device.index() == c10::cuda::current_device() ? scope : nullptr;
  }
  static const ScopeInfo* scope_on_current_stream(std::size_t bytes) {
    const ScopeInfo* scope = current_scope(bytes);
    return scope && c10::cuda::getCurrentCUDAStream(scope->device.index()).stream() == scope->stream ? scope : nullptr;
  }
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
    : guard_(kMemoryScopeSlot, std::make_shared<ScopeInfo>(std::move(memory), device, stream)) {}

KnownMemory::KnownMemory(std::shared_ptr<LaneMemory> memory) : memory_(std::move(memory)) {
  Registry::get().add(memory_);
}

KnownMemory::~KnownMemory() {
  memory_->abandon();
  Registry::get().drop_if_empty(*memory_);
}

} // namespace offload
