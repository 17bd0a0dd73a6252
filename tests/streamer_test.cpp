// The streamer over a fake device, with real bytes: every kernel checks every byte that it reads.

#include <gtest/gtest.h>

#include <thread>

#include <offload/error.h>

#include "streaming.h"
#include "threads.h"

namespace offload::test {
namespace {

Shape uniform(std::size_t weights, std::uint64_t ring_units, Order order = Order::copies_late) {
  Shape shape;
  shape.units.assign(weights, 1);
  shape.ring_units = ring_units;
  shape.batch_units = 1;
  shape.order = order;
  return shape;
}

TEST(Streamer, BringsEveryByteInEveryOrder) {
  for (const Order order : kOrders) {
    Streaming device(uniform(6, 3, order));
    for (int pass = 0; pass < 3; ++pass) {
      device.call(0, each_once(6));
    }
    EXPECT_EQ(device.finish(), "");
    EXPECT_EQ(device.streamer().counts().misses, 0U);
  }
}

TEST(Streamer, MovesExactlyTheBytesOfEachPass) {
  Streaming device(uniform(6, 3));
  for (int pass = 1; pass <= 3; ++pass) {
    device.call(0, each_once(6));
    EXPECT_EQ(device.bytes_used(), pass * (6 * kUnit));
  }
}

TEST(Streamer, SendsNeighboursInOneCopy) {
  Shape shape = uniform(32, 16);
  shape.batch_units = 4;
  Streaming device(shape);
  device.begin(0, each_once(32));
  EXPECT_LE(device.link().copies(), 5U);
  EXPECT_GE(device.link().bytes(), 13 * kUnit);
  device.end(0);
}

TEST(Streamer, WaitsForTheDeviceNowhereInACall) {
  Streaming device(uniform(6, 2));
  for (int pass = 0; pass < 3; ++pass) {
    device.call(0, each_once(6));
  }
  EXPECT_EQ(device.link().calls(Call::synchronize), 0U);
}

TEST(Streamer, TakesTheTimeOfCopiesWhenAsked) {
  for (const Host host : {Host::direct, Host::staged, Host::mixed}) {
    Shape shape = uniform(6, 2);
    shape.host = host;
    Streaming device(shape);
    EXPECT_FALSE(device.streamer().take_marked());
    device.call(0, each_once(6));
    EXPECT_FALSE(device.streamer().take_marked()) << "nobody has asked";
    device.streamer().mark_copies();
    device.call(0, each_once(6));
    EXPECT_EQ(device.finish(), "");
    std::uint64_t bytes = 0;
    const auto marked = device.streamer().take_marked();
    ASSERT_TRUE(marked);
    for (const MarkedBatch& batch : *marked) {
      batch.arrival->await_issued();
      ASSERT_TRUE(batch.arrival->began && batch.arrival->came);
      EXPECT_GE(batch.arrival->came->us_after(*batch.arrival->began), 0);
      for (const Fetch& fetch : batch.fetches) {
        bytes += fetch.bytes;
      }
    }
    EXPECT_EQ(bytes, 6 * kUnit);
    device.call(0, each_once(6));
    EXPECT_FALSE(device.streamer().take_marked()) << "nobody has asked again";
    EXPECT_EQ(device.finish(), "");
  }
}

TEST(Streamer, ReturnsTheStepsThatWereExecuted) {
  Streaming device(uniform(3, 3));
  device.begin(0, each_once(3));
  device.visit(0, {2});
  device.visit(0, {0, 1});
  EXPECT_EQ(device.streamer().end(0).steps, Sequence({{2}, {0, 1}}));
}

TEST(Streamer, IsRightForRandomSequencesRingsAndBatches) {
  for (std::uint32_t seed = 0; seed < 240; ++seed) {
    SCOPED_TRACE(seed);
    Dice dice(seed);
    Shape shape;
    shape.units = dice.sizes(dice.from(1, 10), 4);
    const Sequence steps = dice.sequence(dice.from(1, 12), shape.units.size(), 3);
    shape.ring_units = largest(shape.units, steps) + dice.from(0, 12);
    shape.batch_units = dice.from(0, 8);
    shape.order = kOrders[seed % kOrders.size()];
    shape.seed = seed;
    Streaming device(shape);
    const SequencePtr sequence = share(steps);
    for (int pass = 0; pass < 3; ++pass) {
      Sequence taken;
      for (const Step& step : steps) {
        if (dice.chance(90)) {
          taken.push_back(dice.chance(90) ? step : steps[dice.from(0, steps.size() - 1)]);
        }
      }
      device.call(0, sequence, taken);
    }
    ASSERT_EQ(device.finish(), "");
  }
}

TEST(Streamer, PrefetchesForACallToCome) {
  Streaming device(uniform(6, 3));
  device.streamer().expect(0, each_once(6));
  EXPECT_EQ(device.link().bytes(), 3 * kUnit);
  device.call(0, each_once(6));
  EXPECT_EQ(device.streamer().counts().misses, 0U);
  EXPECT_EQ(device.bytes_used(), 6 * kUnit) << "nothing was copied twice";
  EXPECT_EQ(device.finish(), "");
}

TEST(Streamer, HoldsAPlaceWhileItIsLeased) {
  for (const Order order : kOrders) {
    Streaming device(uniform(6, 3, order));
    device.begin(0, each_once(6));
    device.acquire(0, {0});
    device.read(0, {0});
    for (WeightId weight = 1; weight < 6; ++weight) {
      device.visit(0, {weight});
    }
    device.read(0, {0});
    device.release(0, {0});
    device.end(0);
    EXPECT_EQ(device.finish(), "");
  }
}

TEST(Streamer, NamesTheWeightsThatHoldTheRing) {
  Streaming device(uniform(4, 2));
  device.begin(0, each_once(4));
  device.acquire(0, {0});
  try {
    device.acquire(0, {2, 3});
    FAIL() << "there is no room";
  } catch (const Error& error) {
    const std::string text = error.what();
    EXPECT_NE(text.find("no place for w2, w3 (1 KiB)"), std::string::npos) << text;
    EXPECT_NE(text.find("in use: w0"), std::string::npos) << text;
  }
  device.visit(0, {3});
  device.release(0, {0});
  device.visit(0, {2, 3});
  device.end(0);
  EXPECT_EQ(device.finish(), "");
}

TEST(Streamer, ServesLanesOnThreadsOfTheirOwn) {
  for (std::uint32_t seed = 0; seed < 12; ++seed) {
    SCOPED_TRACE(seed);
    Dice dice(seed);
    Shape shape;
    shape.lanes = 3;
    shape.units = dice.sizes(8, 4);
    shape.order = kOrders[seed % kOrders.size()];
    shape.seed = seed;
    std::vector<Sequence> steps;
    for (int lane = 0; lane < shape.lanes; ++lane) {
      steps.push_back(dice.sequence(10, shape.units.size(), 3));
      shape.ring_units = std::max(shape.ring_units, largest(shape.units, steps.back()));
    }
    shape.ring_units += dice.from(0, 8);
    shape.batch_units = dice.from(0, 4);
    Streaming device(shape);
    in_parallel(shape.lanes, [&](int lane) {
      const SequencePtr sequence = share(steps[lane]);
      for (int pass = 0; pass < 8; ++pass) {
        device.call(lane, sequence);
      }
    });
    ASSERT_EQ(device.finish(), "");
  }
}

TEST(Streamer, ALaneWithoutRoomWaitsForTheOther) {
  Shape shape = uniform(2, 1);
  shape.lanes = 2;
  Streaming device(shape);
  device.begin(0, nullptr);
  device.begin(1, nullptr);
  device.acquire(0, {0});
  BlockedThread other([&] { device.visit(1, {1}); });
  other.await_blocked();
  device.read(0, {0});
  device.release(0, {0});
  other.join();
  EXPECT_EQ(device.finish(), "");
}

/// A lane that has just been given room, and has not woken up to take it, is not one that waits for ever.
TEST(Streamer, ALaneThatIsAboutToWakeIsNotADeadlock) {
  for (int round = 0; round < 50; ++round) {
    Shape shape = uniform(4, 3);
    shape.lanes = 2;
    Streaming device(shape);
    device.begin(0, nullptr);
    device.begin(1, nullptr);
    device.acquire(0, {0});
    device.acquire(1, {1});
    BlockedThread other([&] {
      device.acquire(1, {2, 3}); // waits: only one place is free
      device.release(1, {2, 3});
      device.release(1, {1});
    });
    other.await_blocked();
    device.release(0, {0});
    ASSERT_NO_THROW(device.acquire(0, {0, 2, 3}));
    device.release(0, {0, 2, 3});
    other.join();
    device.end(0);
    device.end(1);
    ASSERT_EQ(device.finish(), "");
  }
}

TEST(Streamer, LanesThatWaitForEachOtherAreToldSo) {
  Shape shape = uniform(4, 2);
  shape.lanes = 2;
  Streaming device(shape);
  device.acquire(0, {0});
  device.acquire(1, {1});
  BlockedThread other([&] {
    device.acquire(1, {2});
    device.release(1, {2});
    device.release(1, {1});
  });
  other.await_blocked();
  EXPECT_THROW(device.acquire(0, {3}), Error);
  device.release(0, {0});
  other.join();
  device.visit(0, {0, 3});
  EXPECT_EQ(device.finish(), "");
}

} // namespace
} // namespace offload::test
