#include <offload/device/lane_memory.h>

#include <iterator>
#include <utility>

#include <offload/bytes.h>
#include <offload/device/memory.h>

namespace offload {

LaneMemory::LaneMemory(std::unique_ptr<Pages> pages, Callbacks callbacks)
    : pages_(std::move(pages)), callbacks_(std::move(callbacks)) {}

LaneMemory::~LaneMemory() {
  for (const auto& [data, loan] : loans_) {
    callbacks_.take_back(const_cast<std::byte*>(data));
  }
  for (const auto& [bytes, data] : returned_) {
    callbacks_.take_back(data);
  }
}

void* LaneMemory::allocate(std::uint64_t bytes) {
  const Lock lock(mutex_);
  const bool refused = ++allocations_ >= refuse_from_;
  // The part is taken from here on, whether there are pages behind it or not.
  const std::uint64_t offset = arena_.take(bytes);
  const std::uint64_t end = offset + align_up(bytes, Arena::kUnit);
  if (trace_) {
    trace_->push_back({offset, static_cast<std::int64_t>(bytes)});
  }
  void* data = pages_->data() + offset;
  if (!refused && end <= held_) {
    return data;
  }
  bool granted = false;
  try {
    const Unlock unlocked(mutex_);
    granted = !refused && grow(end);
  } catch (...) {
    give_back(offset);
    throw;
  }
  if (granted) {
    return data;
  }
  overflowed_ = true;
  data = overflow_ == Overflow::lend ? lend(bytes) : nullptr;
  if (!data) {
    give_back(offset);
    throw LaneOverflow("no room for " + format_bytes(bytes) + " of activations or workspace");
  }
  loans_[static_cast<const std::byte*>(data)] = {offset, bytes};
  has_loans_ = true;
  return data;
}

bool LaneMemory::grow(std::uint64_t bytes) {
  const Lock lock(*callbacks_.growth);
  if (bytes <= held_) {
    return true; // another thread of the call was first
  }
  const std::uint64_t pages = align_up(bytes, kDeviceGranularity);
  if (pages > pages_->addresses() || !callbacks_.may_hold(pages)) {
    return false;
  }
  bool grown = pages_->grow(pages);
  if (!grown) {
    callbacks_.make_free();
    grown = pages_->grow(pages);
  }
  held_ = pages_->bytes();
  by_device_ = by_device_ || !grown;
  return grown;
}

/// Host memory that this call has had before, where it is no more than twice as large: page-locking takes long.
void* LaneMemory::lend(std::uint64_t bytes) {
  if (const auto had = returned_.lower_bound(bytes); had != returned_.end() && had->first <= 2 * bytes) {
    void* data = had->second;
    returned_.erase(had);
    return data;
  }
  return callbacks_.lend(bytes);
}

void LaneMemory::free(void* data) {
  const Lock lock(mutex_);
  if (in_pages(data)) {
    give_back(static_cast<std::uint64_t>(static_cast<std::byte*>(data) - pages_->data()));
    return;
  }
  const auto loan = loans_.find(static_cast<std::byte*>(data));
  give_back(loan->second.offset);
  returned_.emplace(loan->second.bytes, data);
  loans_.erase(loan);
  has_loans_ = !loans_.empty();
}

void LaneMemory::give_back(std::uint64_t offset) {
  arena_.give_back(offset);
  ++frees_;
  if (trace_) {
    trace_->push_back({offset, -1});
  }
}

bool LaneMemory::in_pages(const void* data) const {
  const auto* byte = static_cast<const std::byte*>(data);
  return byte >= pages_->data() && byte < pages_->data() + pages_->addresses();
}

bool LaneMemory::contains(const void* data) const {
  if (in_pages(data) || !has_loans_) {
    return in_pages(data);
  }
  const Lock lock(mutex_);
  const auto* byte = static_cast<const std::byte*>(data);
  const auto after = loans_.upper_bound(byte);
  return after != loans_.begin() && byte < std::prev(after)->first + std::prev(after)->second.bytes;
}

bool LaneMemory::empty() const {
  const Lock lock(mutex_);
  return arena_.end() == 0;
}

void LaneMemory::begin_call(Overflow overflow, AllocationTrace* trace) {
  const Lock lock(mutex_);
  arena_.begin_measuring();
  overflow_ = overflow;
  trace_ = trace;
  allocations_ = 0;
  by_device_ = false;
  overflowed_ = false;
}

CallMemory LaneMemory::end_call() {
  const Lock lock(mutex_);
  const AllocationTrace* trace = std::exchange(trace_, nullptr);
  refuse_from_ = ~std::uint64_t{0};
  for (const auto& [bytes, data] : returned_) {
    callbacks_.take_back(data);
  }
  returned_.clear();
  CallMemory memory;
  memory.bytes = align_up(trace ? bytes_when_repeated(*trace) : arena_.high_water(), kDeviceGranularity);
  memory.overflowed = overflowed_;
  memory.by_device = by_device_;
  return memory;
}

void LaneMemory::trim(const std::function<void()>& wait) {
  std::uint64_t freed_before = 0;
  const auto frees = [&] {
    const Lock lock(mutex_);
    return frees_;
  };
  constexpr int kTries = 3;
  for (int tries = 1;; ++tries) {
    freed_before = frees();
    wait();
    const Lock lock(mutex_);
    if (frees_ != freed_before && tries < kTries) {
      continue; // what has been freed meanwhile may still be in use
    }
    if (frees_ != freed_before) {
      wait();
    }
    pages_->shrink(arena_.end());
    held_ = pages_->bytes();
    return;
  }
}

} // namespace offload
