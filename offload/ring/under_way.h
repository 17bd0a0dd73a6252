#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <vector>

#include <offload/core/batch.h>

namespace offload {

/// The newest copies that have been handed out, as far as they are not known to have arrived, in their order. Each is
/// of a `kind` of calls, of which each may have a part of the ring. Not synchronised.
class UnderWay {
 public:
  /// More than `ring_bytes` are not remembered: copies arrive in their order, so the others need not be asked for.
  explicit UnderWay(std::uint64_t ring_bytes) : ring_bytes_(ring_bytes) {}

  /// What `batches` hold from `first` on has been handed out for calls of `kind`.
  void add(const std::vector<Batch>& batches, std::size_t first, std::size_t kind) {
    for (std::size_t i = first; i < batches.size(); ++i) {
      std::uint64_t bytes = 0;
      for (const Fetch& fetch : batches[i].fetches) {
        bytes += fetch.bytes;
      }
      copies_.push_back({batches[i].arrival, bytes, kind});
      bytes_ += bytes;
    }
    while (!copies_.empty() && bytes_ - copies_.front().bytes >= ring_bytes_) {
      drop_oldest();
    }
  }

  /// What has to arrive before `wanted` bytes more are handed out for calls of `kind`; null when nothing has to. Half
  /// of its `share` of the ring may be under way, or twice what is wanted where the ring has room for that.
  ArrivalPtr before(std::uint64_t wanted, std::size_t kind, std::uint64_t share) const {
    const std::uint64_t most = std::min(ring_bytes_, std::max(share / 2, 2 * wanted));
    std::uint64_t rest = 0;
    for (const Copies& copies : copies_) {
      rest += copies.kind == kind ? copies.bytes : 0;
    }
    ArrivalPtr last;
    for (auto copy = copies_.begin(); copy != copies_.end() && rest + wanted > most; ++copy) {
      if (copy->kind == kind) {
        rest -= copy->bytes;
        last = copy->arrival;
      }
    }
    return last;
  }

  /// `last` has arrived, and what was handed out before it.
  void note_arrived(const ArrivalPtr& last) {
    const auto found =
        std::find_if(copies_.begin(), copies_.end(), [&](const Copies& copies) { return copies.arrival == last; });
    for (auto left = found == copies_.end() ? 0 : found - copies_.begin() + 1; left > 0; --left) {
      drop_oldest();
    }
  }

 private:
  struct Copies {
    ArrivalPtr arrival;
    std::uint64_t bytes;
    std::size_t kind;
  };

  void drop_oldest() {
    bytes_ -= copies_.front().bytes;
    copies_.pop_front();
  }

  const std::uint64_t ring_bytes_;
  std::deque<Copies> copies_;
  std::uint64_t bytes_ = 0;
};

} // namespace offload
