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

/// An allocator of CUDA memory that passes all it is asked on to the one behind it, which outlives it. What PyTorch
/// adds to its interface has to be passed on, too: else the default of the base would hide what the one behind can do.
class ForwardingAllocator : public c10::cuda::CUDACachingAllocator::CUDAAllocator {
 public:
  explicit ForwardingAllocator(CUDAAllocator& behind) : behind_(behind) {}

  c10::DataPtr allocate(std::size_t bytes) override { return behind_.allocate(bytes); }
  bool is_simple_data_ptr(const c10::DataPtr& data) const override { return behind_.is_simple_data_ptr(data); }
  c10::DeleterFnPtr raw_deleter() const override { return behind_.raw_deleter(); }
  void copy_data(void* dest, const void* src, std::size_t count) const override { behind_.copy_data(dest, src, count); }
  void* raw_alloc(std::size_t bytes) override { return behind_.raw_alloc(bytes); }
  void* raw_alloc_with_stream(std::size_t bytes, cudaStream_t stream) override {
    return behind_.raw_alloc_with_stream(bytes, stream);
  }
  void raw_delete(void* data) override { behind_.raw_delete(data); }
  using CUDAAllocator::recordStream;
  void recordStream(const c10::DataPtr& data, c10::cuda::CUDAStream stream) override {
    behind_.recordStream(data, stream);
  }
  void cacheInfo(c10::DeviceIndex device, std::size_t* largest) override { behind_.cacheInfo(device, largest); }
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
    return behind_.memcpyAsync(dst, dst_device, src, src_device, bytes, stream, peers);
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
#if OFFLOAD_TORCH_MINOR >= 12
  std::shared_ptr<c10::GatheredContext> getContextForPointer(const void* data) override {
    return behind_.getContextForPointer(data);
  }
  void attachOomRejectionObserver(c10::cuda::CUDACachingAllocator::OomRejectionObserver observer) override {
    behind_.attachOomRejectionObserver(std::move(observer));
  }
#endif
#if OFFLOAD_TORCH_MINOR >= 13
  void markCaptureBegin(c10::DeviceIndex device) override { behind_.markCaptureBegin(device); }
  void markCaptureEnd(c10::DeviceIndex device) override { behind_.markCaptureEnd(device); }
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
