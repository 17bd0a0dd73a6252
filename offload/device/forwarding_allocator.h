#pragma once

#include <c10/cuda/CUDACachingAllocator.h>

#include <functional>
#include <memory>
#include <string>
#include <unordered_set>
#include <utility>
#include <vector>

#include <offload/device/torch_versions.h>

namespace offload {

namespace caching = c10::cuda::CUDACachingAllocator;

/// An allocator of CUDA memory that passes on, to the one behind it, which outlives it, all but what is asked of memory
/// itself. What PyTorch adds to its interface has to be passed on, too: else the default of the base would hide what
/// the one behind can do.
class ForwardingAllocator : public caching::CUDAAllocator {
 public:
  using DeviceIndex = c10::DeviceIndex;
  using PoolId = c10::MempoolId_t;

  explicit ForwardingAllocator(CUDAAllocator& behind) : behind_(behind) {}

  bool is_simple_data_ptr(const c10::DataPtr& data) const override { return behind_.is_simple_data_ptr(data); }
  void copy_data(void* dest, const void* src, std::size_t count) const override { behind_.copy_data(dest, src, count); }
  bool initialized() override { return behind_.initialized(); }
  void init(int devices) override { behind_.init(devices); }
  void emptyCache(PoolId pool) override { behind_.emptyCache(pool); }
  c10::CachingDeviceAllocator::DeviceStats getDeviceStats(DeviceIndex device) override {
    return behind_.getDeviceStats(device);
  }
  void resetAccumulatedStats(DeviceIndex device) override { behind_.resetAccumulatedStats(device); }
  void resetPeakStats(DeviceIndex device) override { behind_.resetPeakStats(device); }
  std::pair<std::size_t, std::size_t> getMemoryInfo(DeviceIndex device) override {
    return behind_.getMemoryInfo(device);
  }
  double getMemoryFraction(DeviceIndex device) override { return behind_.getMemoryFraction(device); }
  void setMemoryFraction(double fraction, DeviceIndex device) override { behind_.setMemoryFraction(fraction, device); }
  std::vector<caching::StreamSegmentSize> getExpandableSegmentSizes(DeviceIndex device) override {
    return behind_.getExpandableSegmentSizes(device);
  }
  void enable(bool value) override { behind_.enable(value); }
  bool isEnabled() const override { return behind_.isEnabled(); }
  void* getBaseAllocation(void* data, std::size_t* bytes) override { return behind_.getBaseAllocation(data, bytes); }
  caching::SnapshotInfo snapshot(PoolId pool, bool traces) override { return behind_.snapshot(pool, traces); }
  void beginAllocateToPool(DeviceIndex device, PoolId pool, std::function<bool(cudaStream_t)> filter) override {
    behind_.beginAllocateToPool(device, pool, std::move(filter));
  }
  void endAllocateToPool(DeviceIndex device, PoolId pool) override { behind_.endAllocateToPool(device, pool); }
  void releasePool(DeviceIndex device, PoolId pool) override { behind_.releasePool(device, pool); }
  int getPoolUseCount(DeviceIndex device, PoolId pool) override { return behind_.getPoolUseCount(device, pool); }
  void createOrIncrefPool(DeviceIndex device, PoolId pool, std::shared_ptr<CUDAAllocator> allocator) override {
    behind_.createOrIncrefPool(device, pool, std::move(allocator));
  }
  void setUseOnOOM(DeviceIndex device, PoolId pool, bool use) override { behind_.setUseOnOOM(device, pool, use); }
  void setNoSplit(DeviceIndex device, PoolId pool) override { behind_.setNoSplit(device, pool); }
  bool checkPoolLiveAllocations(DeviceIndex device, PoolId pool, const std::unordered_set<void*>& expected) override {
    return behind_.checkPoolLiveAllocations(device, pool, expected);
  }
  caching::ShareableHandle shareIpcHandle(void* data) override { return behind_.shareIpcHandle(data); }
  std::shared_ptr<void> getIpcDevPtr(std::string handle) override { return behind_.getIpcDevPtr(std::move(handle)); }
  bool isHistoryEnabled() override { return behind_.isHistoryEnabled(); }
  void recordHistory(bool enabled, caching::CreateContextFn recorder, std::size_t entries, caching::RecordContext when,
                     bool clear, const std::vector<std::string>& skip) override {
    behind_.recordHistory(enabled, recorder, entries, when, clear, skip);
  }
  void recordAnnotation(const std::vector<std::pair<std::string, std::string>>& annotation) override {
    behind_.recordAnnotation(annotation);
  }
  void pushCompileContext(std::string& context) override { behind_.pushCompileContext(context); }
  void popCompileContext() override { behind_.popCompileContext(); }
  void setUserMetadata(const std::string& metadata) override { behind_.setUserMetadata(metadata); }
  std::string getUserMetadata() override { return behind_.getUserMetadata(); }
  void attachOutOfMemoryObserver(caching::OutOfMemoryObserver observer) override {
    behind_.attachOutOfMemoryObserver(std::move(observer));
  }
  void attachAllocatorTraceTracker(caching::AllocatorTraceTracker tracker) override {
    behind_.attachAllocatorTraceTracker(std::move(tracker));
  }
  void enablePeerAccess(DeviceIndex device, DeviceIndex other) override { behind_.enablePeerAccess(device, other); }
  std::shared_ptr<caching::AllocatorState> getCheckpointState(DeviceIndex device, PoolId pool) override {
    return behind_.getCheckpointState(device, pool);
  }
  caching::CheckpointDelta setCheckpointPoolState(DeviceIndex device,
                                                  std::shared_ptr<caching::AllocatorState> state) override {
    return behind_.setCheckpointPoolState(device, std::move(state));
  }
  std::string name() override { return behind_.name(); }
#if OFFLOAD_TORCH_MINOR >= 12
  std::shared_ptr<c10::GatheredContext> getContextForPointer(const void* data) override {
    return behind_.getContextForPointer(data);
  }
  void attachOomRejectionObserver(caching::OomRejectionObserver observer) override {
    behind_.attachOomRejectionObserver(std::move(observer));
  }
#endif
#if OFFLOAD_TORCH_MINOR >= 13
  void markCaptureBegin(DeviceIndex device) override { behind_.markCaptureBegin(device); }
  void markCaptureEnd(DeviceIndex device) override { behind_.markCaptureEnd(device); }
  c10::DataPtr allocateWithAddress(std::size_t bytes, void* at) override {
    return behind_.allocateWithAddress(bytes, at);
  }
#endif
#if OFFLOAD_TORCH_MINOR >= 14
  bool supportsUserMetadata() override { return behind_.supportsUserMetadata(); }
  void annotateMemory(const void* data, const std::string& metadata) override {
    behind_.annotateMemory(data, metadata);
  }
#endif

 protected:
  CUDAAllocator& behind() { return behind_; }

 private:
  CUDAAllocator& behind_;
};

} // namespace offload
