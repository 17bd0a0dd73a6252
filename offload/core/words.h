#pragma once

// Words that every part uses.

#include <algorithm>
#include <cstdint>
#include <vector>

namespace offload {

using WeightId = std::uint32_t;

/// The weights that one node reads, each once; in what the ring knows, only those that stream.
using Step = std::vector<WeightId>;

/// The steps of one pass in the order of execution. A pass is expected to be followed by the same pass.
using Sequence = std::vector<Step>;

/// Weights below this size are resident: a lease costs more than they do.
constexpr std::uint64_t kSmallBytes = 16ULL << 10;

constexpr std::uint64_t kPageBytes = 4096; // of host memory

/// What is left of `bytes` without those that are taken; 0 when these are more.
constexpr std::uint64_t left_of(std::uint64_t bytes, std::uint64_t taken) { return bytes - std::min(bytes, taken); }

} // namespace offload
