#include <offload/plan/arena.h>

#include <algorithm>
#include <map>
#include <set>
#include <unordered_map>
#include <utility>

#include <offload/bytes.h>

namespace offload {

namespace {

class Arena {
 public:
  Arena(std::uint64_t offset, std::uint64_t bytes) {
    if (bytes > 0) {
      insert(offset, bytes);
    }
  }

  /// False when no block is large enough.
  bool take(std::uint64_t address, std::uint64_t bytes) {
    const auto block = by_size_.lower_bound({bytes, 0});
    if (block == by_size_.end()) {
      return false;
    }
    const auto [size, offset] = *block;
    erase(offset, size);
    const bool cut = size - bytes > kSmallBlockBytes;
    if (cut) {
      insert(offset + bytes, size - bytes);
    }
    taken_[address] = {offset, cut ? bytes : size};
    return true;
  }

  void give_back(std::uint64_t address) {
    const auto taken = taken_.find(address);
    if (taken == taken_.end()) {
      return; // it was taken before the trace began
    }
    auto [offset, size] = taken->second;
    taken_.erase(taken);
    if (const auto next = by_offset_.find(offset + size); next != by_offset_.end()) {
      const std::uint64_t more = next->second;
      erase(offset + size, more);
      size += more;
    }
    if (const auto after = by_offset_.lower_bound(offset); after != by_offset_.begin()) {
      const auto [before, more] = *std::prev(after);
      if (before + more == offset) {
        erase(before, more);
        offset = before;
        size += more;
      }
    }
    insert(offset, size);
  }

 private:
  void insert(std::uint64_t offset, std::uint64_t bytes) {
    by_size_.emplace(bytes, offset);
    by_offset_.emplace(offset, bytes);
  }

  void erase(std::uint64_t offset, std::uint64_t bytes) {
    by_size_.erase({bytes, offset});
    by_offset_.erase(offset);
  }

  std::set<std::pair<std::uint64_t, std::uint64_t>> by_size_; // (bytes, offset) of free blocks
  std::map<std::uint64_t, std::uint64_t> by_offset_;
  std::unordered_map<std::uint64_t, std::pair<std::uint64_t, std::uint64_t>> taken_; // by address in the trace
};

/// The most that a trace holds at once: no arena is smaller.
std::uint64_t most_held(const AllocationTrace& trace) {
  std::unordered_map<std::uint64_t, std::uint64_t> blocks;
  std::uint64_t held = 0;
  std::uint64_t most = 0;
  for (const AllocationEvent& event : trace) {
    if (event.bytes > 0) {
      blocks[event.address] = static_cast<std::uint64_t>(event.bytes);
      held += static_cast<std::uint64_t>(event.bytes);
      most = std::max(most, held);
    } else if (const auto block = blocks.find(event.address); block != blocks.end()) {
      held -= block->second;
      blocks.erase(block);
    }
  }
  return most;
}

} // namespace

bool fits_arena(const AllocationTrace& trace, std::uint64_t kept, std::uint64_t bytes) {
  if (bytes < kept) {
    return false;
  }
  Arena arena(kept, bytes - kept);
  return std::all_of(trace.begin(), trace.end(), [&](const AllocationEvent& event) {
    if (event.bytes > 0) {
      return arena.take(event.address, static_cast<std::uint64_t>(event.bytes));
    }
    arena.give_back(event.address);
    return true;
  });
}

std::uint64_t smallest_arena(const std::vector<const AllocationTrace*>& traces, std::uint64_t kept,
                             std::uint64_t granularity) {
  std::uint64_t bytes = kept;
  for (const AllocationTrace* trace : traces) {
    bytes = std::max(bytes, kept + most_held(*trace));
  }
  bytes = align_up(bytes == 0 ? 0 : std::max(bytes, kLeastArenaBytes), granularity);
  const auto all_fit = [&] {
    return std::all_of(traces.begin(), traces.end(),
                       [&](const AllocationTrace* trace) { return fits_arena(*trace, kept, bytes); });
  };
  while (!all_fit()) { // a larger arena may fit worse: best fit has no order; the sum of all blocks always does
    bytes += granularity;
  }
  return bytes;
}

} // namespace offload
