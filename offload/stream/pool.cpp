#include <offload/stream/pool.h>

#include <ATen/cuda/MemPool.h>
#include <c10/util/Exception.h>
#include <torch/csrc/cuda/CUDAPluggableAllocator.h>

#include <mutex>
#include <thread>
#include <vector>

namespace offload {

namespace allocator = c10::cuda::CUDACachingAllocator;

Pool::Pool(c10::DeviceIndex device, cudaStream_t stream)
    : device_(device), stream_(stream), id_(at::cuda::MemPool::graph_pool_handle()) {
  const auto segments = segments_;
  allocator::createOrIncrefPool(
      device_, id_,
      std::make_shared<torch::cuda::CUDAPluggableAllocator::CUDAPluggableAllocator>(
          [segments](std::size_t bytes, int, cudaStream_t) { return segments->allocate(bytes); },
          [segments](void* data, std::size_t, int, cudaStream_t) { segments->free(data); }));
}

namespace {

/// Has the allocator forget pools that are gone. It refuses while any pool is in use: then those that come later are
/// tried together with it.
void forget(c10::cuda::MempoolId_t pool) {
  static std::mutex& mutex = *new std::mutex; // for modules that outlive main()
  static std::vector<c10::cuda::MempoolId_t>& gone = *new std::vector<c10::cuda::MempoolId_t>;
  const std::lock_guard lock(mutex);
  gone.push_back(pool);
  try {
    while (!gone.empty()) {
      allocator::emptyCache(gone.back());
      gone.pop_back();
    }
  } catch (const c10::Error&) {
    return;
  }
}

} // namespace

Pool::~Pool() {
  bool was_empty = false;
  try {
    was_empty = empty();
    allocator::releasePool(device_, id_);
    forget(id_);
  } catch (const c10::Error&) { // the driver is gone
  }
  if (was_empty) {
    segments_->free_all();
  }
}

/// True when no tensor is in it.
bool Pool::empty() const { return allocator::checkPoolLiveAllocations(device_, id_, {}); }

void Pool::take_over(Pool& other) {
  if (other.empty()) {
    segments_->take_over(*other.segments_);
  }
}

bool Pool::take_arena(std::uint64_t bytes) {
  if (bytes == 0) {
    return true;
  }
  const Use use(*this);
  try {
    allocator::raw_delete(allocator::raw_alloc_with_stream(bytes, stream_));
  } catch (const c10::Error&) {
    return false;
  }
  return true;
}

void Pool::begin_use() const {
  const cudaStream_t own = stream_;
  const std::thread::id thread = std::this_thread::get_id(); // others may use the stream, too
  allocator::beginAllocateToPool(device_, id_, [own, thread](cudaStream_t stream) {
    return stream == own && std::this_thread::get_id() == thread;
  });
}

void Pool::end_use() const {
  allocator::endAllocateToPool(device_, id_);
  allocator::releasePool(device_, id_);
}

namespace {

thread_local const Pool* in_use = nullptr;

} // namespace

Pool::Use::Use(const Pool& pool) : pool_(pool), outer_(in_use) {
  if (outer_) {
    outer_->end_use();
  }
  pool_.begin_use();
  in_use = &pool_;
}

Pool::Use::~Use() {
  pool_.end_use();
  in_use = outer_;
  if (outer_) {
    outer_->begin_use();
  }
}

} // namespace offload
