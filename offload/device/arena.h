#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <unordered_map>
#include <utility>
#include <vector>

namespace offload {

/// Gives out parts of one range of addresses, which begins at 0 and has no end. It knows offsets only: what lies behind
/// them is its owner's business. The same calls on an empty arena give the same offsets, so that what one call of a
/// model took is what the next one takes. Not synchronised.
class Arena {
 public:
  /// What parts are aligned to, and the unit of their sizes.
  static constexpr std::uint64_t kUnit = 512;

  /// The offset of `bytes` (more than 0): in the smallest hole that holds them, of those the lowest; at end() where no
  /// hole does.
  std::uint64_t take(std::uint64_t bytes);

  /// `offset` is one that take() gave. Holes are joined.
  void give_back(std::uint64_t offset);

  /// Where the last part ends that is taken.
  std::uint64_t end() const { return end_; }

  /// The largest end() since begin_measuring().
  std::uint64_t high_water() const { return high_water_; }
  void begin_measuring() { high_water_ = end_; }

 private:
  void add_hole(std::uint64_t offset, std::uint64_t bytes);
  void remove_hole(std::uint64_t offset, std::uint64_t bytes);

  std::uint64_t end_ = 0;
  std::uint64_t high_water_ = 0;
  std::unordered_map<std::uint64_t, std::uint64_t> taken_;          // bytes by offset
  std::map<std::uint64_t, std::uint64_t> holes_;                    // bytes by offset
  std::set<std::pair<std::uint64_t, std::uint64_t>> holes_by_size_; // (bytes, offset)
};

/// One step of what a call did with an arena.
struct AllocationEvent {
  std::uint64_t offset; ///< identifies a part for as long as it is taken
  std::int64_t bytes;   ///< taken, or given back when negative
};
using AllocationTrace = std::vector<AllocationEvent>;

/// What a call takes that repeats `trace`, when the arena already holds what `trace` takes and never gives back.
std::uint64_t bytes_when_repeated(const AllocationTrace& trace);

} // namespace offload
