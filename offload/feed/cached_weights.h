#pragma once

#include <algorithm>
#include <cstddef>
#include <memory>
#include <utility>
#include <vector>

#include <offload/feed/stores.h>

namespace offload {

/// The weights of a store that are used where the page cache has them, as a window maps them; without one, none. The
/// owner's mutex guards all but find() and owns().
class CachedWeights {
 public:
  CachedWeights(std::unique_ptr<CacheWindow> window, HostPlaces host)
      : window_(std::move(window)), host_(std::move(host)), addresses_(host_.size()) {}

  /// Takes what the window maps out of `batch`; `link` counts it. Throws when there is no memory for lists.
  void take_from(Batch& batch, Link& link, std::byte* ring) {
    if (!window_) {
      return;
    }
    const auto is_mapped = [&](const Fetch& fetch) {
      const std::byte* address = map(fetch);
      addresses_[fetch.weight] = address;
      if (address) {
        link.copy(ring + fetch.place, ring + fetch.place, fetch.bytes); // counted, no more
      }
      return address != nullptr;
    };
    batch.fetches.erase(std::remove_if(batch.fetches.begin(), batch.fetches.end(), is_mapped), batch.fetches.end());
  }

  /// Of a leased weight, whose address does not change: null when it is in the ring.
  const std::byte* find(WeightId weight) const { return addresses_[weight]; }
  bool owns(const void* address) const { return window_ && window_->contains(address); }

 private:
  const std::byte* map(const Fetch& fetch) {
    const HostPlace& src = host_[fetch.weight];
    if (src.bytes >= CacheWindow::kLeastBytes) {
      return window_->map(fetch.place, fetch.bytes, src.offset, src.bytes);
    }
    window_->take(fetch.place, fetch.bytes);
    return nullptr;
  }

  const std::unique_ptr<CacheWindow> window_;
  const HostPlaces host_;
  std::vector<const std::byte*> addresses_; // by weight
};

} // namespace offload
