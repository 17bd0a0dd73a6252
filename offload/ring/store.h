#pragma once

#include <cstddef>

#include <offload/core/batch.h>

namespace offload {

/// Where the bytes of the weights are on the host, and how a batch of them gets under way to the ring.
class Store {
 public:
  virtual ~Store() = default;

  /// Enqueues the copies of `batch`, in the order of the calls, and sets `batch.arrival`, now or from a thread of its
  /// own. A copy that fails is reported there; this function does not throw.
  virtual void issue(Batch batch) = 0;

  /// Blocks until every batch that was given to `issue` is issued.
  virtual void drain() = 0;

  /// Drains, and brings nothing any more: what the store works with may go. What it gave outside the ring stays until
  /// its end.
  virtual void stop() {}

  /// Where the bytes of a weight are that is leased, and has arrived, but has not been brought to its place in the
  /// ring; null for all others.
  virtual const std::byte* outside_ring(WeightId /*weight*/) const { return nullptr; }
};

} // namespace offload
