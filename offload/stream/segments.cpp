#include <offload/stream/segments.h>

#include <cuda_runtime_api.h>

#include <iterator>
#include <utility>

#include <offload/plan/arena.h>

namespace offload {

namespace {

void give_back(const std::byte* data, bool on_host) {
  auto* memory = const_cast<std::byte*>(data);
  static_cast<void>(on_host ? cudaFreeHost(memory) : cudaFree(memory)); // fails when the driver is gone
}

} // namespace

void* Segments::allocate(std::size_t bytes) {
  const std::lock_guard lock(mutex_);
  if (const auto ready = taken_over_.find(bytes); ready != taken_over_.end()) {
    refused_ = {};
    segments_[ready->second] = {bytes, false};
    auto* data = const_cast<std::byte*>(ready->second);
    taken_over_.erase(ready);
    return data;
  }
  if (reserved_ + bytes > limit_) {
    free_taken_over();
  }
  const bool fits = reserved_ + bytes <= limit_;
  if (!fits && !overflow_) {
    refused_ = {bytes, false};
    return nullptr;
  }
  void* data = nullptr;
  const auto status = fits ? cudaMalloc(&data, bytes) : cudaHostAlloc(&data, bytes, cudaHostAllocDefault);
  if (status != cudaSuccess) {
    static_cast<void>(cudaGetLastError());
    refused_ = {bytes, fits}; // else it is the host that has none, and the budget had no room to begin with
    return nullptr;
  }
  refused_ = {};
  segments_[static_cast<const std::byte*>(data)] = {bytes, !fits};
  reserved_ += fits ? bytes : 0;
  return data;
}

void Segments::free(void* data) {
  Segment segment;
  {
    const std::lock_guard lock(mutex_);
    const auto entry = segments_.find(static_cast<const std::byte*>(data));
    if (entry == segments_.end()) {
      return;
    }
    segment = entry->second;
    reserved_ -= segment.on_host ? 0 : segment.bytes;
    segments_.erase(entry);
  }
  give_back(static_cast<const std::byte*>(data), segment.on_host);
}

void Segments::free_all() {
  const std::lock_guard lock(mutex_);
  for (const auto& [data, segment] : segments_) {
    give_back(data, segment.on_host);
  }
  segments_.clear();
  free_taken_over();
  reserved_ = 0;
}

void Segments::free_taken_over() {
  for (const auto& [bytes, data] : taken_over_) {
    give_back(data, false);
    reserved_ -= bytes;
  }
  taken_over_.clear();
}

void Segments::take_over(Segments& other) {
  const std::scoped_lock lock(mutex_, other.mutex_);
  for (const auto& [data, segment] : other.segments_) {
    if (segment.on_host) {
      give_back(data, true);
    } else {
      taken_over_.emplace(segment.bytes, data);
    }
  }
  other.segments_.clear();
  taken_over_.merge(other.taken_over_);
  reserved_ += std::exchange(other.reserved_, 0);
}

bool Segments::contains(const void* address) const {
  const std::lock_guard lock(mutex_);
  const auto* byte = static_cast<const std::byte*>(address);
  const auto segment = segments_.upper_bound(byte);
  return segment != segments_.begin() && byte < std::prev(segment)->first + std::prev(segment)->second.bytes;
}

void Segments::set_limit(std::uint64_t bytes) {
  const std::lock_guard lock(mutex_);
  limit_ = bytes;
}

void Segments::allow_overflow() {
  const std::lock_guard lock(mutex_);
  overflow_ = true;
}

std::uint64_t Segments::reserved() const {
  const std::lock_guard lock(mutex_);
  return reserved_;
}

std::uint64_t Segments::small() const {
  const std::lock_guard lock(mutex_);
  std::uint64_t bytes = 0;
  for (const auto& [data, segment] : segments_) {
    bytes += segment.bytes == kSmallPieceBytes ? segment.bytes : 0;
  }
  return bytes;
}

Refusal Segments::take_refused() {
  const std::lock_guard lock(mutex_);
  return std::exchange(refused_, {});
}

} // namespace offload
