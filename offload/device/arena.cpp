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
  std::unordered_map<std::uint64_t, std::size_t> open; // positions of what is taken, by offset
  std::vector<bool> kept(trace.size(), false);
  for (std::size_t i = 0; i < trace.size(); ++i) {
    if (trace[i].bytes > 0) {
      open[trace[i].offset] = i;
      kept[i] = true;
    } else if (const auto taken = open.find(trace[i].offset); taken != open.end()) {
      kept[taken->second] = false;
      open.erase(taken);
    }
  }
  Arena arena;
  for (std::size_t i = 0; i < trace.size(); ++i) {
    if (kept[i]) {
      arena.take(static_cast<std::uint64_t>(trace[i].bytes));
    }
  }
  std::unordered_map<std::uint64_t, std::uint64_t> offsets; // in this arena, by those in the trace
  for (std::size_t i = 0; i < trace.size(); ++i) {
    const AllocationEvent& event = trace[i];
    if (event.bytes > 0 && !kept[i]) {
      offsets[event.offset] = arena.take(static_cast<std::uint64_t>(event.bytes));
    } else if (const auto taken = offsets.find(event.offset); event.bytes < 0 && taken != offsets.end()) {
      arena.give_back(taken->second);
      offsets.erase(taken);
    }
  }
  return arena.high_water();
}

} // namespace offload
