// Each wait of the streamer is needed: when one is skipped, the checks of the other tests fail.

#include <gtest/gtest.h>

#include "streaming.h"

namespace offload::test {
namespace {

/// One weight after the other, each in a place that another was read from: no wait is covered by a later one.
Shape one_by_one(Order order) {
  Shape shape;
  shape.units.assign(7, 1);
  shape.ring_units = 3;
  shape.order = order;
  return shape;
}

std::string problems_of(const Shape& shape, std::uint64_t* waits = nullptr, Call call = Call::wait) {
  Streaming device(shape);
  const SequencePtr sequence = each_once(shape.units.size());
  for (int pass = 0; pass < 3; ++pass) {
    device.call(0, sequence);
  }
  if (waits != nullptr) {
    *waits = device.link().calls(call);
  }
  return device.finish();
}

void expect_every_one_needed(Call call, Order order) {
  Shape shape = one_by_one(order);
  std::uint64_t waits = 0;
  ASSERT_EQ(problems_of(shape, &waits, call), "");
  ASSERT_GT(waits, 10U);
  for (std::uint64_t n = 0; n < waits; ++n) {
    shape.skip = {call, n};
    EXPECT_NE(problems_of(shape), "") << "wait " << n << " of " << waits << " was left out";
  }
}

TEST(StreamerWaits, EveryWaitOfALaneForItsBytesIsNeeded) {
  expect_every_one_needed(Call::wait_arrived, Order::copies_late);
}

TEST(StreamerWaits, EveryWaitOfACopyForItsReadersIsNeeded) { expect_every_one_needed(Call::wait, Order::compute_late); }

TEST(StreamerWaits, NoneOfAKindFailsForAnyShape) {
  for (std::uint32_t seed = 0; seed < 60; ++seed) {
    SCOPED_TRACE(seed);
    Dice dice(seed);
    Shape shape;
    shape.units = dice.sizes(dice.from(3, 10), 4);
    const std::uint64_t all = total(shape.units, *each_once(shape.units.size()));
    shape.ring_units = std::max(largest(shape.units, *each_once(shape.units.size())), all / 2);
    shape.batch_units = dice.from(0, 3);
    for (const Order order : {Order::copies_late, Order::compute_late}) {
      shape.order = order;
      shape.skip.reset();
      ASSERT_EQ(problems_of(shape), "");
      shape.skip = {order == Order::copies_late ? Call::wait_arrived : Call::wait, std::nullopt};
      EXPECT_NE(problems_of(shape), "");
    }
  }
}

TEST(StreamerWaits, ARandomOrderFindsThemToo) {
  for (const Call call : {Call::wait, Call::wait_arrived}) {
    int found = 0;
    for (std::uint32_t seed = 0; seed < 20; ++seed) {
      Shape shape = one_by_one(Order::random);
      shape.seed = seed;
      shape.skip = {call, std::nullopt};
      found += problems_of(shape).empty() ? 0 : 1;
    }
    EXPECT_GE(found, 18);
  }
}

TEST(StreamerWaits, LanesThatReadOneWeightAreEachWaitedFor) {
  // Both lanes read weight 0; then its place is given away. Each skipped wait leaves one of them without.
  const auto run = [](std::optional<SkippingLink::Skip> skip, std::uint64_t* waits) {
    Shape shape;
    shape.units = {1, 1};
    shape.ring_units = 1;
    shape.lanes = 2;
    shape.order = Order::compute_late;
    shape.skip = skip;
    Streaming device(shape);
    device.acquire(0, {0});
    device.acquire(1, {0});
    for (const int lane : {0, 1}) {
      device.read(lane, {0});
      device.release(lane, {0});
    }
    device.visit(0, {1});
    if (waits != nullptr) {
      *waits = device.link().calls(Call::wait);
    }
    return device.finish();
  };
  std::uint64_t waits = 0;
  EXPECT_EQ(run(std::nullopt, &waits), "");
  ASSERT_EQ(waits, 2U);
  for (std::uint64_t n = 0; n < waits; ++n) {
    EXPECT_NE(run(SkippingLink::Skip{Call::wait, n}, nullptr), "");
  }
}

TEST(StreamerWaits, AStagingBufferIsNotFilledBeforeTheLinkHasReadIt) {
  Shape shape = one_by_one(Order::copies_late);
  shape.host = Host::staged;
  ASSERT_EQ(problems_of(shape), "");
  shape.skip = {Call::synchronize, std::nullopt};
  EXPECT_NE(problems_of(shape), "");
}

TEST(StreamerWaits, OfTheStagedStoreAreNeededToo) {
  Shape shape = one_by_one(Order::compute_late);
  shape.host = Host::staged;
  shape.buffers = 32; // more than are sent, so that the device is not made to run ahead of the host
  ASSERT_EQ(problems_of(shape), "");
  std::uint64_t waits = 0;
  problems_of(shape, &waits, Call::wait);
  shape.skip = {Call::wait, std::nullopt};
  EXPECT_NE(problems_of(shape), "");
  shape.order = Order::copies_late;
  shape.skip = {Call::wait_arrived, std::nullopt};
  EXPECT_NE(problems_of(shape), "");
}

} // namespace
} // namespace offload::test
