#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include <offload/core/link.h>
#include <offload/core/mark.h>
#include <offload/core/words.h>

namespace offload {

/// Copies that travel under one fence. Shared by the slots that they fill.
struct Arrival {
  FencePtr fence;                   ///< recorded once the copies are enqueued
  std::atomic<bool> issued = false; ///< `fence` and `failure` are set and do not change any more
  std::string failure;              ///< why the copies were not enqueued; empty when they were
  bool of_archive = false;          ///< the failure is the file's
  bool is_marked = false;           ///< their times are wanted; it was set before the store was given them
  MarkPtr began;                    ///< before the first of them, where their times are wanted, and
  MarkPtr came;                     ///< after the last

  void await_issued() const { issued.wait(false, std::memory_order_acquire); }
};
using ArrivalPtr = std::shared_ptr<Arrival>;

/// Bytes of one weight on their way to a place in the ring.
struct Fetch {
  WeightId weight;
  std::uint64_t place; ///< offset in the ring
  std::uint64_t bytes;
};

/// Fetches that are issued together, in order, after `readers` have let go of the places.
struct Batch {
  std::vector<Fetch> fetches;
  std::vector<FencePtr> readers;
  ArrivalPtr arrival;
};

/// A batch whose times are wanted. They are in its arrival once that is issued; null where a store could not tell.
struct MarkedBatch {
  std::vector<Fetch> fetches;
  ArrivalPtr arrival;
};

} // namespace offload
