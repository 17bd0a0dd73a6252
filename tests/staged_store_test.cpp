// The staged store under a streamer: tiny buffers, several threads, some weights page-locked.

#include <gtest/gtest.h>

#include <algorithm>

#include "streaming.h"
#include "threads.h"

namespace offload::test {
namespace {

Shape staged(std::vector<std::uint64_t> units, std::uint64_t ring_units) {
  Shape shape;
  shape.units = std::move(units);
  shape.ring_units = ring_units;
  shape.host = Host::staged;
  return shape;
}

TEST(StagedStore, BringsWeightsLargerThanItsBuffers) {
  Shape shape = staged({7, 3, 9}, 10);
  shape.buffer_units = 2;
  Streaming device(shape);
  for (int pass = 0; pass < 3; ++pass) {
    device.call(0, each_once(3));
  }
  EXPECT_EQ(device.finish(), "");
  EXPECT_EQ(device.bytes_used(), 3 * (19 * kUnit));
}

TEST(StagedStore, GathersSmallWeightsInOneBuffer) {
  Shape shape = staged(std::vector<std::uint64_t>(33, 1), 64);
  shape.batch_units = 16;
  shape.buffer_units = 16;
  Streaming device(shape);
  device.begin(0, each_once(33));
  device.end(0);
  EXPECT_EQ(device.finish(), "");
  EXPECT_EQ(device.link().bytes(), 33 * kUnit);
  EXPECT_LE(device.link().copies(), 3U);
}

TEST(StagedStore, CutsABatchWhereTheRingEnds) {
  Shape shape = staged(std::vector<std::uint64_t>(20, 1), 10);
  shape.batch_units = 3;
  shape.buffer_units = 4;
  Streaming device(shape);
  for (int pass = 0; pass < 3; ++pass) {
    device.call(0, each_once(20));
  }
  EXPECT_EQ(device.finish(), "");
}

TEST(StagedStore, SendsPageLockedWeightsFromWhereTheyAre) {
  Shape shape = staged({4, 4, 4, 4}, 8);
  shape.host = Host::mixed;
  shape.buffer_units = 1;
  Streaming device(shape);
  device.call(0, each_once(4));
  EXPECT_EQ(device.finish(), "");
  EXPECT_LT(device.link().copies(), device.link().bytes() / kUnit) << "a page-locked weight is one copy";
}

TEST(StagedStore, IsRightForAllShapes) {
  for (std::uint32_t seed = 0; seed < 90; ++seed) {
    SCOPED_TRACE(seed);
    Dice dice(seed);
    Shape shape = staged(dice.sizes(dice.from(1, 10), 6), 0);
    const Sequence steps = dice.sequence(dice.from(1, 12), shape.units.size(), 3);
    shape.ring_units = largest(shape.units, steps) + dice.from(0, 12);
    shape.batch_units = dice.from(0, 8);
    shape.host = dice.chance(50) ? Host::mixed : Host::staged;
    shape.buffer_units = dice.from(1, 5);
    shape.buffers = static_cast<int>(dice.from(2, 4));
    shape.threads = static_cast<int>(dice.from(1, 3));
    shape.order = kOrders[seed % kOrders.size()];
    shape.seed = seed;
    Streaming device(shape);
    for (int pass = 0; pass < 3; ++pass) {
      device.call(0, share(steps));
    }
    ASSERT_EQ(device.finish(), "");
  }
}

TEST(StagedStore, ServesLanesOnThreadsOfTheirOwn) {
  for (std::uint32_t seed = 0; seed < 9; ++seed) {
    SCOPED_TRACE(seed);
    Dice dice(seed);
    Shape shape = staged(dice.sizes(8, 4), 0);
    const Sequence steps = dice.sequence(10, shape.units.size(), 3);
    shape.lanes = 3;
    shape.ring_units = largest(shape.units, steps) + dice.from(0, 8);
    shape.batch_units = dice.from(0, 4);
    shape.host = seed % 2 == 0 ? Host::mixed : Host::staged;
    shape.order = kOrders[seed % kOrders.size()];
    shape.seed = seed;
    Streaming device(shape);
    const SequencePtr sequence = share(steps);
    in_parallel(shape.lanes, [&](int lane) {
      for (int pass = 0; pass < 6; ++pass) {
        device.call(lane, sequence);
      }
    });
    ASSERT_EQ(device.finish(), "");
  }
}

TEST(StagedStore, IsDestroyedWithWorkInFlight) {
  for (std::uint32_t seed = 0; seed < 30; ++seed) {
    Shape shape = staged(std::vector<std::uint64_t>(20, 3), 45);
    shape.seed = seed;
    shape.batch_units = 2;
    Streaming device(shape);
    device.begin(0, each_once(20));
    device.visit(0, {0});
  }
}

TEST(StagedStore, IsDestroyedUnused) { Streaming device(staged({1}, 1)); }

} // namespace
} // namespace offload::test
