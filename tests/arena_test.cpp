#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <vector>

#include <offload/bytes.h>
#include <offload/device/arena.h>

namespace offload::test {
namespace {

TEST(Arena, GivesPartsOneAfterTheOther) {
  Arena arena;
  EXPECT_EQ(arena.take(512), 0);
  EXPECT_EQ(arena.take(1), 512) << "in units of 512";
  EXPECT_EQ(arena.take(1024), 1024);
  EXPECT_EQ(arena.end(), 2048);
}

TEST(Arena, TakesTheSmallestHoleThatHolds) {
  Arena arena;
  const std::uint64_t large = arena.take(4096);
  arena.take(512);
  const std::uint64_t small = arena.take(1024);
  arena.take(512);
  arena.give_back(large);
  arena.give_back(small);
  EXPECT_EQ(arena.take(1000), small);
  EXPECT_EQ(arena.take(1024), large);
  EXPECT_EQ(arena.take(3072), large + 1024) << "the rest of the hole";
  EXPECT_EQ(arena.end(), 4096 + 512 + 1024 + 512);
}

TEST(Arena, JoinsHolesAndTheEnd) {
  Arena arena;
  const std::uint64_t a = arena.take(512);
  const std::uint64_t b = arena.take(512);
  const std::uint64_t c = arena.take(512);
  arena.take(512);
  arena.give_back(a);
  arena.give_back(c);
  arena.give_back(b);
  EXPECT_EQ(arena.take(1536), a);
  arena.give_back(1536);
  arena.give_back(a);
  EXPECT_EQ(arena.end(), 0);
  EXPECT_EQ(arena.high_water(), 2048);
  arena.begin_measuring();
  EXPECT_EQ(arena.high_water(), 0);
}

/// Against a list of parts: none overlap, and the end is that of the last.
TEST(Arena, KeepsPartsApart) {
  std::mt19937 random(1);
  Arena arena;
  std::map<std::uint64_t, std::uint64_t> parts;
  std::uint64_t high = 0;
  for (int step = 0; step < 20'000; ++step) {
    if (parts.size() < 3 || random() % 2 == 0) {
      const std::uint64_t bytes = 1 + random() % (random() % 4 == 0 ? 100'000 : 2'000);
      const std::uint64_t offset = arena.take(bytes);
      ASSERT_EQ(offset % Arena::kUnit, 0);
      const auto after = parts.lower_bound(offset);
      ASSERT_TRUE(after == parts.end() || offset + bytes <= after->first);
      ASSERT_TRUE(after == parts.begin() || std::prev(after)->first + std::prev(after)->second <= offset);
      parts[offset] = align_up(bytes, Arena::kUnit);
    } else {
      const auto part = std::next(parts.begin(), static_cast<std::ptrdiff_t>(random() % parts.size()));
      arena.give_back(part->first);
      parts.erase(part);
    }
    const std::uint64_t end = parts.empty() ? 0 : parts.rbegin()->first + parts.rbegin()->second;
    ASSERT_EQ(arena.end(), end);
    high = std::max(high, end);
    ASSERT_EQ(arena.high_water(), high);
  }
}

TEST(Arena, RepeatsACallWithWhatItKeptAtTheBeginning) {
  // a workspace of 8 KiB was wanted while 4 KiB were taken, and stays
  const AllocationTrace trace = {{0, 4096}, {4096, 8192}, {0, -1}, {0, 2048}, {0, -1}};
  EXPECT_EQ(bytes_when_repeated(trace), 8192 + 4096);
  EXPECT_EQ(bytes_when_repeated({}), 0);
}

TEST(Arena, ARepeatedCallTakesWhatItWasSaidToTake) {
  std::mt19937 random(2);
  for (int round = 0; round < 200; ++round) {
    AllocationTrace trace;
    Arena arena;
    std::vector<std::uint64_t> taken;
    for (int step = 0; step < 200; ++step) {
      if (taken.empty() || random() % 2 == 0) {
        const std::uint64_t bytes = 1 + random() % 50'000;
        taken.push_back(arena.take(bytes));
        trace.push_back({taken.back(), static_cast<std::int64_t>(bytes)});
      } else {
        const std::size_t which = random() % taken.size();
        arena.give_back(taken[which]);
        trace.push_back({taken[which], -1});
        taken.erase(taken.begin() + static_cast<std::ptrdiff_t>(which));
      }
    }
    for (const std::uint64_t offset : taken) { // nothing is kept: the repetition is the call itself
      arena.give_back(offset);
      trace.push_back({offset, -1});
    }
    ASSERT_EQ(bytes_when_repeated(trace), arena.high_water());
  }
}

} // namespace
} // namespace offload::test
