// Host memory that runs out while weights are scheduled: an error, no wrong byte, and nobody who waits for ever. A
// program of its own, since operator new is.

#include <gtest/gtest.h>
#include <offload/error.h>
#include <offload/feed/copies.h>

#include "scarce.h"
#include "waits_device.h"

namespace offload::test {
namespace {

constexpr std::size_t kNoStep = ~std::size_t{0};

/// Two calls, of which `allocations` are granted to the streamer in the step with this number; with `once`, only the
/// next one is refused. True when they were enough.
bool runs(Streaming& device, const SequencePtr& expected, const SequencePtr& sequence,
          std::size_t scarce_step = kNoStep, int allocations = 0, bool once = false) {
  std::size_t number = 0;
  bool enough = true;
  const auto streamer_does = [&](auto work) {
    if (number++ != scarce_step) {
      work();
      return;
    }
    const Scarce scarce(allocations, once);
    try {
      work();
    } catch (...) {
      enough = false;
      throw;
    }
    enough = !Scarce::ran_out();
  };
  for (int pass = 0; pass < 2; ++pass) {
    streamer_does([&] { device.begin(0, expected); });
    for (const Step& step : *sequence) {
      streamer_does([&] { device.acquire(0, step); });
      device.read(0, step);
      streamer_does([&] { device.release(0, step); });
    }
    device.end(0);
  }
  return enough;
}

/// Each allocation of each step is refused, in calls that go as expected and in calls that do not.
void expect_told(Host host, const Shape& sizes, const SequencePtr& expected, bool once, int& refused) {
  const SequencePtr sequence = each_once(sizes.units.size());
  for (std::size_t step = 0; step < 2 * (1 + 2 * sequence->size()); ++step) {
    for (int allocations = 0;; ++allocations) {
      SCOPED_TRACE("step " + std::to_string(step) + ", " + std::to_string(allocations) + " allocations" +
                   (once ? ", one refused" : ""));
      Shape shape = sizes;
      shape.host = host;
      shape.order = Order::compute_late; // what does not wait for its readers is seen
      Streaming device(shape);
      bool enough = false;
      const int before = refused;
      try {
        enough = runs(device, expected, sequence, step, allocations, once);
      } catch (const Error&) {
        ++refused;
      } catch (const std::bad_alloc&) { // no memory to say so, either
        ++refused;
      }
      if (device.streamer().lost()) {
        EXPECT_THROW(device.begin(0, sequence), Error);
        EXPECT_THROW(device.acquire(0, {0}), Error);
      } else if (refused > before) {
        EXPECT_TRUE(runs(device, expected, sequence)) << "what failed is copied again";
      }
      EXPECT_EQ(device.finish(), "");
      if (enough) {
        break;
      }
    }
  }
}

TEST(OutOfMemory, WhileWeightsAreScheduledIsToldFromThenOn) {
  int refused = 0;
  for (const bool once : {false, true}) {
    for (const Host host : {Host::direct, Host::staged, Host::mixed}) {
      Shape shape;
      shape.units = {2, 3, 1, 2, 3, 1};
      shape.ring_units = 6;
      shape.batch_units = 2;
      expect_told(host, shape, each_once(6), once, refused);
    }
    Shape shape;
    shape.units = {3, 3, 2, 5};
    shape.ring_units = 12;
    shape.batch_units = 3;
    expect_told(Host::direct, shape, share({{3}, {1}, {2}, {0}}), once, refused); // each step is a miss
    expect_told(Host::direct, shape, share({{1}, {2}, {3}}), once, refused);
  }
  EXPECT_GT(refused, 100);
}

/// It does so in a destructor.
TEST(OutOfMemory, ALeaseEndsAndWhatCanNotGoOnSaysSo) {
  Shape shape;
  shape.units = {2, 2, 2, 2, 2, 2};
  shape.ring_units = 8;
  shape.batch_units = 2;
  shape.lanes = 2;
  int failed = 0;
  for (const Host host : {Host::direct, Host::staged}) {
    shape.host = host;
    bool ran_out = true;
    for (int allocations = 0; ran_out; ++allocations) {
      Streaming device(shape);
      device.begin(0, each_once(6));
      const Step first = {0};
      device.acquire(0, first);
      device.read(0, first);
      {
        const Scarce scarce(allocations);
        device.release(0, first);
        ran_out = Scarce::ran_out();
      }
      try {
        for (WeightId weight = 1; weight < 6; ++weight) {
          device.visit(0, {weight});
        }
        device.end(0);
      } catch (const Error& error) {
        EXPECT_TRUE(ran_out) << error.what();
        ++failed;
      }
      EXPECT_EQ(device.finish(), "");
    }
  }
  EXPECT_GT(failed, 3);
}

TEST(OutOfMemory, AFailureThatThereIsNoMemoryToDescribeIsToldAllTheSame) {
  FakeLink link(1, Order::random, 1);
  const Batch batch{{}, {}, std::make_shared<Arrival>()};
  const Error refused("what takes memory of its own");
  {
    const Scarce scarce(0);
    fail(link, batch, refused);
    finish(link, batch);
  }
  EXPECT_TRUE(batch.arrival->issued);
  EXPECT_EQ(batch.arrival->failure, "no host memory");
}

TEST(OutOfMemory, WhatOthersWaitForComesAllTheSame) {
  const Deadline deadline;
  Device device(3, 3, 0, Order::copies_late, 3);
  device.use_direct_store();
  device.use_streamer();
  device.slow.hold(Call::copy);
  BlockedThread issues([&] { device.visit(0, 0); });
  device.slow.await_caller();
  BlockedThread waits([&] { device.visit(1, 1); });
  waits.await_blocked();
  const SequencePtr sequence = share({{2}});
  {
    const Scarce scarce(0);
    device.streamer->expect(2, sequence);
  }
  EXPECT_TRUE(device.streamer->lost());
  device.slow.release();
  issues.join();
  waits.join();
  device.expect_no_problems();
}

} // namespace
} // namespace offload::test
