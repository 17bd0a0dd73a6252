#pragma once

#include <cstdint>
#include <vector>

namespace offload {

/// One step of what a call did with memory of the device.
struct AllocationEvent {
  std::uint64_t address;
  std::int64_t bytes; ///< taken, or given back when negative
};
using AllocationTrace = std::vector<AllocationEvent>;

/// Blocks of this size and less are none of the arena's: PyTorch's allocator serves them from pieces of their own.
constexpr std::uint64_t kSmallBlockBytes = 1ULL << 20;
constexpr std::uint64_t kSmallPieceBytes = 2ULL << 20;

/// An arena is as large as this at least: for less, PyTorch's allocator asks the driver for 20 MiB.
constexpr std::uint64_t kLeastArenaBytes = 10ULL << 20;

/// True when a call that does what `trace` says finds room in an arena of `bytes` of which it has the rest after
/// `kept`. The blocks are given out as PyTorch's caching allocator does (c10/cuda/CUDACachingAllocator): the smallest
/// free one that is large enough, of those the lowest; it is cut when more than 1 MiB would be left; it is joined with
/// its neighbours when it comes back. What the trace does not give back stays.
bool fits_arena(const AllocationTrace& trace, std::uint64_t kept, std::uint64_t bytes);

/// The smallest arena, a multiple of `granularity`, in which each of `traces` fits, beginning with it empty. 0 when
/// they need none.
std::uint64_t smallest_arena(const std::vector<const AllocationTrace*>& traces, std::uint64_t kept,
                             std::uint64_t granularity);

} // namespace offload
