#pragma once

#include <exception>
#include <new>
#include <vector>

#include <offload/error.h>
#include <offload/feed/stores.h>

namespace offload {

/// Bytes that are contiguous on both sides.
struct Copy {
  std::uint64_t place; ///< offset in the ring
  HostPlace src;
  std::uint64_t bytes;

  bool is_followed_by(const Copy& next) const {
    return place + bytes == next.place && !src.in_file() && !next.src.in_file() &&
           src.memory + bytes == next.src.memory && src.direct == next.src.direct && src.source == next.src.source;
  }
};

/// The copies of a batch, neighbours joined.
inline std::vector<Copy> merge_neighbours(const Batch& batch, const HostPlaces& host) {
  std::vector<Copy> copies;
  for (const Fetch& fetch : batch.fetches) {
    const Copy copy{fetch.place, host[fetch.weight], fetch.bytes};
    if (!copies.empty() && copies.back().is_followed_by(copy)) {
      copies.back().bytes += copy.bytes;
    } else {
      copies.push_back(copy);
    }
  }
  return copies;
}

/// The copy stream waits for those who read the places last.
inline void wait_for_readers(Link& link, const Batch& batch) {
  for (const FencePtr& reader : batch.readers) {
    link.wait(*reader);
  }
}

/// The time of now is wanted, where `arrival` says so. Nothing depends on it.
inline MarkPtr mark(Link& link, const Arrival& arrival) noexcept {
  try {
    return arrival.is_marked ? link.mark() : nullptr;
  } catch (const std::exception&) {
    return nullptr;
  }
}

/// The copies of `batch` come next.
inline void mark_begin(Link& link, const Batch& batch) noexcept { batch.arrival->began = mark(link, *batch.arrival); }

/// Records now what wait_for_readers() will wait for.
inline void record_readers(Link& link, const Batch& batch) {
  for (const FencePtr& reader : batch.readers) {
    try {
      link.record_now(*reader);
    } catch (const std::exception&) { // reported to whoever waits for it
    }
  }
}

/// Marks the arrival: `batch` will not come. Later batches count on this one having waited for its readers, so now
/// the host waits for them.
inline void fail(Link& link, const Batch& batch, const std::exception& error) noexcept {
  batch.arrival->of_archive = dynamic_cast<const ArchiveError*>(&error) != nullptr;
  try {
    batch.arrival->failure = *error.what() ? error.what() : "unknown error"; // empty would mean that it went well
  } catch (const std::bad_alloc&) {
    batch.arrival->failure = "no host memory"; // so short that it takes none
  }
  for (const FencePtr& reader : batch.readers) {
    try {
      link.synchronize(*reader);
    } catch (const std::exception&) { // the device is gone: nothing will be written either
    }
  }
}

/// All copies of `batch` are enqueued, or it failed: either way nothing more happens to its arrival.
inline void finish(Link& link, const Batch& batch) noexcept {
  Arrival& arrival = *batch.arrival;
  if (arrival.failure.empty()) {
    try {
      arrival.fence = link.record_arrived();
      arrival.came = mark(link, arrival);
    } catch (const std::exception& error) {
      fail(link, batch, error);
    }
  }
  arrival.issued.store(true, std::memory_order_release);
  arrival.issued.notify_all();
}

} // namespace offload
