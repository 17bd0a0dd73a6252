#include <offload/ring/ring.h>

#include <algorithm>
#include <cassert>

namespace offload {

std::optional<std::uint64_t> Ring::allocate(std::uint64_t bytes) {
  assert(bytes > 0);
  const auto take = [&](std::map<std::uint64_t, std::uint64_t>::iterator gap, std::uint64_t offset) {
    bytes_free_ -= bytes;
    const std::uint64_t begin = gap->first;
    const std::uint64_t end = begin + gap->second;
    gaps_.erase(gap);
    if (begin < offset) {
      gaps_[begin] = offset - begin;
    }
    if (offset + bytes < end) {
      gaps_[offset + bytes] = end - offset - bytes;
    }
    cursor_ = offset + bytes == bytes_ ? 0 : offset + bytes;
    return offset;
  };
  auto after = gaps_.upper_bound(cursor_);
  if (after != gaps_.begin()) {
    const auto around = std::prev(after);
    if (around->first + around->second >= cursor_ + bytes) {
      return take(around, cursor_);
    }
  }
  for (auto gap = after; gap != gaps_.end(); ++gap) {
    if (gap->second >= bytes) {
      return take(gap, gap->first);
    }
  }
  for (auto gap = gaps_.begin(); gap != after; ++gap) {
    if (gap->second >= bytes) {
      return take(gap, gap->first);
    }
  }
  return std::nullopt;
}

void Ring::free(std::uint64_t offset, std::uint64_t bytes, const std::vector<FencePtr>& readers) {
  if (!readers.empty()) {
    readers_[offset] = {offset + bytes, readers};
  }
  bytes_free_ += bytes;
  auto next = gaps_.lower_bound(offset);
  assert(next == gaps_.end() || offset + bytes <= next->first);
  if (next != gaps_.end() && next->first == offset + bytes) {
    bytes += next->second;
    next = gaps_.erase(next);
  }
  if (next != gaps_.begin()) {
    const auto previous = std::prev(next);
    assert(previous->first + previous->second <= offset);
    if (previous->first + previous->second == offset) {
      previous->second += bytes;
      return;
    }
  }
  gaps_[offset] = bytes;
}

void Ring::collect_readers(std::uint64_t offset, std::uint64_t bytes, std::vector<FencePtr>& out) const {
  auto range = readers_.upper_bound(offset);
  if (range != readers_.begin() && std::prev(range)->second.end > offset) {
    --range;
  }
  for (; range != readers_.end() && range->first < offset + bytes; ++range) {
    out.insert(out.end(), range->second.fences.begin(), range->second.fences.end());
  }
}

void Ring::split_readers_at(std::uint64_t offset) {
  const auto after = readers_.lower_bound(offset);
  if (after == readers_.begin()) {
    return;
  }
  const auto before = std::prev(after);
  if (before->second.end > offset) {
    readers_[offset] = before->second;
    before->second.end = offset;
  }
}

void Ring::drop_readers(std::uint64_t offset, std::uint64_t bytes) {
  split_readers_at(offset);
  split_readers_at(offset + bytes);
  readers_.erase(readers_.lower_bound(offset), readers_.lower_bound(offset + bytes));
}

} // namespace offload
