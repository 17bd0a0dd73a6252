#include <offload/device/lane_memory.h>

#include <utility>

#include <offload/bytes.h>
#include <offload/device/memory.h>

namespace offload {

LaneMemory::LaneMemory(std::unique_ptr<Pages> pages, Callbacks callbacks, HostLoans::Source host)
    : pages_(std::move(pages)), callbacks_(std::move(callbacks)), loans_(std::move(host)) {}

void* LaneMemory::allocate(std::uint64_t bytes) {
  const Lock lock(mutex_);
  const bool refused = ++call_.allocations >= refuse_from_;
  // The part is taken from here on, whether there are pages behind it or not.
  const std::uint64_t offset = arena_.take(bytes);
  const std::uint64_t end = offset + align_up(bytes, Arena::kUnit);
  if (call_.trace) {
    call_.trace->push_back({offset, static_cast<std::int64_t>(bytes)});
  }
  Growth growth = refused ? Growth::refused : Growth::granted;
  if (!refused && end > held_) {
    try {
      const Unlock unlocked(mutex_);
      growth = grow(end);
    } catch (...) {
      give_back(offset);
      throw;
    }
  }
  if (growth == Growth::granted) {
    return pages_->data() + offset;
  }
  call_.by_device = call_.by_device || growth == Growth::device_is_full;
  overflowed_ = true;
  void* data = call_.overflow == Overflow::lend ? loans_.lend(bytes, offset) : nullptr;
  if (!data) {
    give_back(offset);
    throw LaneOverflow("no room for " + format_bytes(bytes) + " of activations or workspace");
  }
  return data;
}

LaneMemory::Growth LaneMemory::grow(std::uint64_t bytes) {
  const Lock lock(*callbacks_.growth);
  if (bytes <= held_) {
    return Growth::granted; // another thread of the call was first
  }
  const std::uint64_t pages = align_up(bytes, kDeviceGranularity);
  if (pages > pages_->addresses() || !callbacks_.may_hold(pages)) {
    return Growth::refused;
  }
  bool grown = pages_->grow(pages);
  if (!grown) {
    callbacks_.make_free();
    grown = pages_->grow(pages);
  }
  held_ = pages_->bytes();
  return grown ? Growth::granted : Growth::device_is_full;
}

void LaneMemory::free(void* data) {
  const Lock lock(mutex_);
  give_back(in_pages(data) ? static_cast<std::uint64_t>(static_cast<std::byte*>(data) - pages_->data())
                           : loans_.take_back(data));
}

void LaneMemory::give_back(std::uint64_t offset) {
  arena_.give_back(offset);
  ++frees_;
  if (call_.trace) {
    call_.trace->push_back({offset, -1});
  }
}

bool LaneMemory::in_pages(const void* data) const {
  const auto* byte = static_cast<const std::byte*>(data);
  return byte >= pages_->data() && byte < pages_->data() + pages_->addresses();
}

bool LaneMemory::contains(const void* data) const { return in_pages(data) || loans_.contains(data); }

bool LaneMemory::empty() const {
  const Lock lock(mutex_);
  return arena_.end() == 0;
}

void LaneMemory::begin_call(Overflow overflow, AllocationTrace* trace) {
  const Lock lock(mutex_);
  arena_.begin_measuring();
  call_ = {.overflow = overflow, .trace = trace};
  overflowed_ = false;
}

CallMemory LaneMemory::end_call() {
  const Lock lock(mutex_);
  const AllocationTrace* trace = std::exchange(call_.trace, nullptr);
  refuse_from_ = ~std::uint64_t{0};
  loans_.free_returned();
  const std::uint64_t bytes = trace ? bytes_when_repeated(*trace) : arena_.high_water();
  return {align_up(bytes, kDeviceGranularity), overflowed_, call_.by_device};
}

void LaneMemory::trim(const std::function<void()>& wait) {
  const auto frees = [&] {
    const Lock lock(mutex_);
    return frees_;
  };
  constexpr int kTries = 3;
  for (int tries = 1;; ++tries) {
    const std::uint64_t freed_before = frees();
    wait();
    const Lock lock(mutex_);
    if (frees_ != freed_before) { // what has been freed meanwhile may still be in use
      if (tries < kTries) {
        continue;
      }
      wait();
    }
    pages_->shrink(arena_.end());
    held_ = pages_->bytes();
    return;
  }
}

} // namespace offload
