// What activations of measured calls take: best fit in one piece of memory.

#include <gtest/gtest.h>

#include <offload/bytes.h>
#include <offload/plan/arena.h>

#include "streaming.h"

namespace offload::test {
namespace {

constexpr std::uint64_t kGranularity = 2_MiB;

AllocationEvent take(std::uint64_t address, std::uint64_t bytes) { return {address, static_cast<std::int64_t>(bytes)}; }
AllocationEvent give(std::uint64_t address) { return {address, -1}; }

std::uint64_t smallest(const AllocationTrace& trace, std::uint64_t kept = 0) {
  return smallest_arena({&trace}, kept, kGranularity);
}

TEST(Arena, HoldsWhatIsHeldAtOnce) {
  EXPECT_EQ(smallest({}), 0U);
  EXPECT_EQ(smallest({take(1, 14_MiB), give(1), take(2, 14_MiB), give(2)}), 14_MiB);
  EXPECT_EQ(smallest({take(1, 14_MiB), take(2, 14_MiB), give(1), give(2)}), 28_MiB);
  EXPECT_EQ(smallest({take(1, 4_MiB)}, 32_MiB), 36_MiB);
  EXPECT_EQ(smallest({take(1, 4_MiB)}), kLeastArenaBytes);
}

TEST(Arena, JoinsWhatComesBack) {
  const AllocationTrace trace = {take(1, 4_MiB), take(2, 4_MiB), take(3, 4_MiB), give(1),
                                 give(3),        give(2),        take(4, 12_MiB)};
  EXPECT_EQ(smallest(trace), 12_MiB);
}

TEST(Arena, IsLargerWhereHolesAreTooSmall) {
  // Two holes of 4 MiB around a block that stays: 8 MiB at once find no room in them.
  const AllocationTrace trace = {take(1, 4_MiB), take(2, 2_MiB), take(3, 4_MiB), give(1), give(3), take(4, 8_MiB)};
  EXPECT_FALSE(fits_arena(trace, 0, 10_MiB));
  EXPECT_EQ(smallest(trace), 14_MiB);
}

TEST(Arena, DoesNotCutOffOneMebibyteOrLess) {
  const AllocationTrace trace = {take(1, 3_MiB), take(2, 2_MiB + 512)}; // of a hole of 3 MiB nothing is left
  EXPECT_TRUE(fits_arena(trace, 0, 6_MiB));
  const AllocationTrace more = {take(1, 3_MiB), take(2, 2_MiB + 512), take(3, 1_MiB - 512)};
  EXPECT_FALSE(fits_arena(more, 0, 6_MiB));
}

TEST(Arena, TakesTheSmallestHoleThatIsLargeEnough) {
  const AllocationTrace trace = {take(1, 8_MiB), take(2, 2_MiB), take(3, 4_MiB), take(4, 2_MiB),
                                 give(1),        give(3),        take(5, 4_MiB), take(6, 8_MiB)};
  EXPECT_EQ(smallest(trace), 16_MiB);
}

TEST(Arena, FitsEveryOneOfSeveralTraces) {
  for (std::uint32_t seed = 0; seed < 40; ++seed) {
    Dice dice(seed);
    std::vector<AllocationTrace> traces(3);
    for (AllocationTrace& trace : traces) {
      std::vector<std::uint64_t> live;
      for (std::uint64_t address = 1; address < 60; ++address) {
        trace.push_back(take(address, dice.from(1_MiB / 512 + 1, 8_MiB / 512) * 512));
        live.push_back(address);
        while (!live.empty() && dice.chance(60)) {
          const std::size_t which = dice.from(0, live.size() - 1);
          trace.push_back(give(live[which]));
          live.erase(live.begin() + static_cast<std::ptrdiff_t>(which));
        }
      }
    }
    const std::uint64_t bytes = smallest_arena({&traces[0], &traces[1], &traces[2]}, 4_MiB, kGranularity);
    for (const AllocationTrace& trace : traces) {
      EXPECT_TRUE(fits_arena(trace, 4_MiB, bytes)) << seed;
    }
  }
}

} // namespace
} // namespace offload::test
