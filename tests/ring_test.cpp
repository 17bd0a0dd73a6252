#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include <offload/ring/ring.h>

#include "point.h"

namespace offload {
namespace {

FencePtr point(int lane = 0) { return std::make_shared<test::Point>(lane); }

std::vector<FencePtr> readers(const Ring& ring, std::uint64_t offset, std::uint64_t bytes) {
  std::vector<FencePtr> fences;
  ring.collect_readers(offset, bytes, fences);
  return fences;
}

using Fences = std::vector<FencePtr>;

TEST(Ring, GivesPlacesOneAfterTheOther) {
  Ring ring(10);
  EXPECT_EQ(ring.allocate(3), 0U);
  EXPECT_EQ(ring.allocate(4), 3U);
  EXPECT_EQ(ring.allocate(3), 7U);
  EXPECT_EQ(ring.allocate(1), std::nullopt);
  EXPECT_EQ(ring.bytes_free(), 0U);
}

TEST(Ring, GoesOnAfterTheLastPlaceThoughOneBeforeItIsFree) {
  Ring ring(10);
  ring.allocate(3);
  ring.allocate(3);
  ring.free(0, 3, {});
  EXPECT_EQ(ring.allocate(3), 6U);
}

TEST(Ring, WrapsWhenTheEndIsTooShort) {
  Ring ring(10);
  ring.allocate(4);
  ring.allocate(4);
  ring.free(0, 4, {});
  EXPECT_EQ(ring.allocate(3), 0U);
  EXPECT_EQ(ring.allocate(2), 8U) << "a place that is held is stepped over";
}

TEST(Ring, FindsTheGapAroundTheCursorWhenOnlyItsWholeIsLargeEnough) {
  Ring ring(10);
  ring.allocate(6);
  ring.free(0, 6, {});
  EXPECT_EQ(ring.allocate(9), 0U);
}

TEST(Ring, JoinsFreePlacesOfBothSides) {
  Ring ring(9);
  for (int i = 0; i < 3; ++i) {
    ring.allocate(3);
  }
  ring.free(0, 3, {});
  ring.free(6, 3, {});
  EXPECT_EQ(ring.allocate(4), std::nullopt);
  ring.free(3, 3, {});
  EXPECT_EQ(ring.allocate(9), 0U);
}

TEST(Ring, OfNoBytesHasNoPlace) {
  Ring ring(0);
  EXPECT_EQ(ring.allocate(1), std::nullopt);
}

TEST(Ring, KeepsReadersUntilTheyAreDropped) {
  Ring ring(8);
  ring.allocate(8);
  const FencePtr used = point();
  ring.free(0, 8, {used});
  ring.allocate(8);
  EXPECT_EQ(readers(ring, 0, 8), Fences{used});
  EXPECT_EQ(readers(ring, 0, 8), Fences{used}) << "collecting drops none";
  ring.drop_readers(0, 8);
  EXPECT_TRUE(readers(ring, 0, 8).empty());
}

TEST(Ring, KeepsReadersOfBothSidesWhenTheMiddleIsDropped) {
  Ring ring(9);
  ring.allocate(9);
  const FencePtr used = point();
  ring.free(0, 9, {used});
  ring.drop_readers(3, 3);
  EXPECT_EQ(readers(ring, 0, 3), Fences{used});
  EXPECT_TRUE(readers(ring, 3, 3).empty());
  EXPECT_EQ(readers(ring, 6, 3), Fences{used});
}

TEST(Ring, CollectsTheReadersOfAllPlacesThatAreTouched) {
  Ring ring(9);
  Fences used;
  for (std::uint64_t offset = 0; offset < 9; offset += 3) {
    ring.allocate(3);
    used.push_back(point());
  }
  for (std::uint64_t i = 0; i < 3; ++i) {
    ring.free(3 * i, 3, {used[i]});
  }
  EXPECT_EQ(readers(ring, 2, 5), used);
  EXPECT_EQ(readers(ring, 3, 3), Fences{used[1]});
}

TEST(Ring, FreeingWhatWasNotWrittenKeepsTheReadersOfBefore) {
  Ring ring(4);
  ring.allocate(4);
  const FencePtr used = point();
  ring.free(0, 4, {used});
  const auto cursor = ring.cursor();
  ring.allocate(2);
  ring.free(0, 2, {});
  ring.set_cursor(cursor);
  EXPECT_EQ(readers(ring, 0, 4), Fences{used});
}

/// The same, byte by byte.
struct Model {
  explicit Model(std::uint64_t bytes) : held(bytes), used(bytes) {}
  std::vector<bool> held;
  std::vector<Fences> used;

  bool fits(std::uint64_t bytes) const {
    std::uint64_t run = 0;
    for (const bool taken : held) {
      run = taken ? 0 : run + 1;
      if (run == bytes) {
        return true;
      }
    }
    return false;
  }
};

TEST(Ring, AgreesWithAModelOnRandomUse) {
  std::mt19937 random(3);
  for (int round = 0; round < 100; ++round) {
    const std::uint64_t size = 1 + random() % 64;
    Ring ring(size);
    Model model(size);
    std::vector<std::pair<std::uint64_t, std::uint64_t>> places;
    for (int i = 0; i < 100; ++i) {
      if (random() % 2 == 0 || places.empty()) {
        const std::uint64_t bytes = 1 + random() % size;
        const auto cursor = ring.cursor();
        const auto place = ring.allocate(bytes);
        ASSERT_EQ(place.has_value(), model.fits(bytes));
        if (!place) {
          continue;
        }
        ASSERT_LE(*place + bytes, size);
        Fences expected;
        for (std::uint64_t at = *place; at < *place + bytes; ++at) {
          ASSERT_FALSE(model.held[at]);
          expected.insert(expected.end(), model.used[at].begin(), model.used[at].end());
        }
        Fences found = readers(ring, *place, bytes);
        const auto unify = [](Fences& fences) {
          std::sort(fences.begin(), fences.end());
          fences.erase(std::unique(fences.begin(), fences.end()), fences.end());
        };
        unify(expected);
        unify(found);
        ASSERT_EQ(found, expected);
        if (random() % 4 == 0) { // changed its mind
          ring.free(*place, bytes, {});
          ring.set_cursor(cursor);
          continue;
        }
        ring.drop_readers(*place, bytes);
        for (std::uint64_t at = *place; at < *place + bytes; ++at) {
          model.held[at] = true;
          model.used[at].clear();
        }
        places.emplace_back(*place, bytes);
      } else {
        std::swap(places[random() % places.size()], places.back());
        const auto [offset, bytes] = places.back();
        places.pop_back();
        Fences used;
        for (std::uint64_t n = random() % 3; n > 0; --n) {
          used.push_back(point());
        }
        ring.free(offset, bytes, used);
        for (std::uint64_t at = offset; at < offset + bytes; ++at) {
          model.held[at] = false;
          model.used[at] = used;
        }
      }
      ASSERT_EQ(ring.bytes_free(), static_cast<std::uint64_t>(std::count(model.held.begin(), model.held.end(), false)));
    }
  }
}

} // namespace
} // namespace offload
