#include <offload/device/arena.h>

#include <algorithm>
#include <iterator>

#include <offload/bytes.h>

namespace offload {

std::uint64_t Arena::take(std::uint64_t bytes) {
  bytes = align_up(bytes, kUnit);
  std::uint64_t offset = end_;
  if (const auto hole = holes_by_size_.lower_bound({bytes, 0}); hole != holes_by_size_.end()) {
    const auto [size, begin] = *hole;
    offset = begin;
    remove_hole(begin, size);
    if (size > bytes) {
      add_hole(begin + bytes, size - bytes);
    }
  } else {
    end_ += bytes;
    high_water_ = std::max(high_water_, end_);
  }
  taken_[offset] = bytes;
  return offset;
}

void Arena::give_back(std::uint64_t offset) {
  const auto part = taken_.find(offset);
  std::uint64_t bytes = part->second;
  taken_.erase(part);
  if (const auto next = holes_.find(offset + bytes); next != holes_.end()) {
    const std::uint64_t more = next->second;
    remove_hole(offset + bytes, more);
    bytes += more;
  }
  if (const auto after = holes_.lower_bound(offset); after != holes_.begin()) {
    const auto [before, more] = *std::prev(after);
    if (before + more == offset) {
      remove_hole(before, more);
      offset = before;
      bytes += more;
    }
  }
  if (offset + bytes == end_) {
    end_ = offset;
  } else {
    add_hole(offset, bytes);
  }
}

void Arena::add_hole(std::uint64_t offset, std::uint64_t bytes) {
  holes_[offset] = bytes;
  holes_by_size_.emplace(bytes, offset);
}

void Arena::remove_hole(std::uint64_t offset, std::uint64_t bytes) {
  holes_.erase(offset);
  holes_by_size_.erase({bytes, offset});
}

std::uint64_t bytes_when_repeated(const AllocationTrace& trace) {
  std::unordered_map<std::uint64_t, const AllocationEvent*> open; // what is taken, by offset
  for (const AllocationEvent& event : trace) {
    if (event.bytes > 0) {
      open[event.offset] = &event;
    } else {
      open.erase(event.offset);
    }
  }
  std::set<const AllocationEvent*> kept; // in their order, which offsets depend on
  for (const auto& [offset, event] : open) {
    kept.insert(event);
  }
  Arena arena;
  for (const AllocationEvent* event : kept) {
    arena.take(static_cast<std::uint64_t>(event->bytes));
  }
  std::unordered_map<std::uint64_t, std::uint64_t> offsets; // in this arena, by those in the trace
  for (const AllocationEvent& event : trace) {
    if (event.bytes > 0 && !kept.contains(&event)) {
      offsets[event.offset] = arena.take(static_cast<std::uint64_t>(event.bytes));
    } else if (const auto taken = offsets.find(event.offset); event.bytes < 0 && taken != offsets.end()) {
      arena.give_back(taken->second);
      offsets.erase(taken);
    }
  }
  return arena.high_water();
}

} // namespace offload
