#include <offload/stream/pool.h>

#include <ATen/cuda/MemPool.h>
#include <c10/util/Exception.h>
#include <torch/csrc/cuda/CUDAPluggableAllocator.h>

#include <algorithm>
#include <thread>

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

Pool::~Pool() {
  bool empty = false;
  try {
    empty = allocator::checkPoolLiveAllocations(device_, id_, {});
    allocator::releasePool(device_, id_);
    allocator::emptyCache(id_);
  } catch (const c10::Error&) { // some pool is in use: the allocator forgets ours later
  }
  if (empty) {
    segments_->free_all();
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

Pool::Use::Use(const Pool& pool) : pool_(pool) {
  // Streams belong to one thread at a time: what is allocated on ours is ours.
  const cudaStream_t own = pool.stream_;
  allocator::beginAllocateToPool(pool.device_, pool.id_, [own](cudaStream_t stream) { return stream == own; });
}

Pool::Use::~Use() {
  allocator::endAllocateToPool(pool_.device_, pool_.id_);
  allocator::releasePool(pool_.device_, pool_.id_);
}

} // namespace offload
