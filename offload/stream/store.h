#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include <offload/stream/link.h>
#include <offload/stream/scheduler.h>

namespace offload {

/// Where the bytes of the weights are on the host, and how a batch of them gets under way to the ring.
class Store {
 public:
  virtual ~Store() = default;

  /// Enqueues the copies of `batch`, in the order of the calls, and sets `batch.arrival`, now or from a thread of its
  /// own. A copy that fails is told there; this function does not throw.
  virtual void issue(Batch batch) = 0;

  /// Blocks until `arrival` is issued.
  virtual void wait_issued(const Arrival& arrival) = 0;

  /// Blocks until every batch that was given to `issue` is issued.
  virtual void drain() = 0;
};

/// Host bytes by weight, each readable for as long as the store lives. Null for weights that never stream.
using HostBytes = std::vector<const std::byte*>;

/// A store of page-locked memory (or, for a link within the host, of any memory): the link reads straight from it.
/// Neighbours in both host memory and ring become one copy.
std::unique_ptr<Store> make_direct_store(Link& link, HostBytes host, std::byte* ring);

/// Page-locked memory that bytes pass through on the way to the link.
struct StagingBuffers {
  std::byte* data;
  std::uint64_t buffer_bytes;
  int count; ///< at least 2
};

/// A store of ordinary memory: `threads` threads fill the staging buffers ahead of the link. Weights for which `direct`
/// is true are page-locked where they lie and take part in the same order without being staged. `staging` outlives the
/// store; what happens in it is over when the destructor returns.
std::unique_ptr<Store> make_staged_store(Link& link, HostBytes host, std::vector<bool> direct, std::byte* ring,
                                         StagingBuffers staging, int threads);

/// Copies with stores that leave the cache alone, for destinations that this processor does not read again.
void copy_past_cache(std::byte* dst, const std::byte* src, std::size_t bytes);

} // namespace offload
