#pragma once

#include <c10/core/Device.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>

#include <offload/stream/segments.h>

namespace offload {

/// A pool of PyTorch's caching allocator with memory of our own, for allocations on one stream.
///
/// at::cuda::MemPool is not used: its destructor empties the pool, which the allocator refuses, with an abort, while
/// any other pool in the process is in use.
class Pool {
 public:
  Pool(c10::DeviceIndex device, cudaStream_t stream);

  /// Frees the memory, unless tensors are still in it: then it goes with them.
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  Segments& segments() const { return *segments_; }
  cudaStream_t stream() const { return stream_; }

  /// Takes the memory of `other` along, unless tensors are still in it. What was enqueued with it comes before what
  /// will be.
  void take_over(Pool& other);

  /// Takes one piece of `bytes` from the driver now. False when it has not so much.
  bool take_arena(std::uint64_t bytes);

  /// While this lives, allocations of this thread on the stream come from the pool, and nobody else's. The innermost
  /// one of a thread holds.
  class Use {
   public:
    explicit Use(const Pool& pool);
    ~Use();
    Use(const Use&) = delete;
    Use& operator=(const Use&) = delete;

   private:
    const Pool& pool_;
    const Pool* const outer_;
  };

 private:
  bool empty() const;
  void begin_use() const;
  void end_use() const;

  const c10::DeviceIndex device_;
  const cudaStream_t stream_;
  const std::shared_ptr<Segments> segments_ = std::make_shared<Segments>();
  const c10::cuda::MempoolId_t id_;
};

} // namespace offload
