// Passes that calls share, on threads, over a fake device with real bytes: every kernel checks every byte that it
// reads.

#include <gtest/gtest.h>

#include <latch>
#include <optional>

#include <offload/ring/under_way.h>

#include "streaming.h"
#include "threads.h"
#include "waits_device.h"

namespace offload::test {
namespace {

Shape uniform(std::size_t weights, std::uint64_t ring_units, int lanes) {
  Shape shape;
  shape.units.assign(weights, 1);
  shape.ring_units = ring_units;
  shape.batch_units = 1;
  shape.lanes = lanes;
  return shape;
}

/// Executes `sequence` from step `first` on, and ends the call.
void finish(Streaming& device, int lane, const Sequence& sequence, std::size_t first = 0) {
  for (std::size_t step = first; step < sequence.size(); ++step) {
    device.visit(lane, sequence[step]);
  }
  device.end(lane);
}

TEST(SharedPass, CallsThatBeginTogetherBringEachWeightOnce) {
  const Deadline deadline;
  for (const Order order : kOrders) {
    for (const Host host : {Host::direct, Host::staged, Host::mixed}) {
      Shape shape = uniform(24, 6, 4);
      shape.order = order;
      shape.host = host;
      Streaming device(shape);
      const SequencePtr sequence = each_once(24);
      std::latch begun(shape.lanes);
      in_parallel(shape.lanes, [&](int lane) {
        device.begin(lane, sequence);
        begun.arrive_and_wait();
        finish(device, lane, *sequence);
      });
      EXPECT_EQ(device.streamer().counts().bytes_used, 24 * kUnit);
      EXPECT_EQ(device.streamer().counts().misses, 0U);
      EXPECT_EQ(device.streamer().counts().passes.passes, 1U);
      EXPECT_EQ(device.streamer().counts().passes.calls, 4U);
      EXPECT_EQ(device.finish(), "");
    }
  }
}

/// Whoever is ahead waits for the others; each weight is there until all have read it.
TEST(SharedPass, NobodyIsFurtherAheadThanTheRing) {
  const Deadline deadline;
  Streaming device(uniform(8, 3, 2));
  const SequencePtr sequence = each_once(8);
  device.begin(0, sequence);
  device.begin(1, sequence);
  std::atomic<int> read = 0;
  BlockedThread ahead([&] {
    for (const Step& step : *sequence) {
      device.visit(0, step);
      ++read;
    }
    device.end(0);
  });
  ahead.await_blocked();
  EXPECT_EQ(read, 3);
  finish(device, 1, *sequence);
  ahead.join();
  EXPECT_EQ(device.streamer().counts().bytes_used, 8 * kUnit);
  EXPECT_GT(device.streamer().counts().calls_us, 0);
  EXPECT_EQ(device.streamer().counts().door_us, 0);
  EXPECT_EQ(device.finish(), "");
}

TEST(SharedPass, ACallMayJoinWhileAllIsThere) {
  Streaming device(uniform(8, 4, 2));
  const SequencePtr sequence = each_once(8);
  device.begin(0, sequence);
  device.acquire(0, {0}); // it is read, and has not gone
  device.begin(1, sequence);
  in_parallel(2, [&](int lane) {
    if (lane == 0) {
      device.read(0, {0});
      device.release(0, {0});
    } else {
      device.visit(1, {0});
    }
    finish(device, lane, *sequence, 1);
  });
  EXPECT_EQ(device.streamer().counts().bytes_used, 8 * kUnit);
  EXPECT_EQ(device.finish(), "");
}

/// It takes nothing from the pass that is under way, and brings nothing twice for itself.
TEST(SharedPass, ACallThatComesLateWaitsForTheNext) {
  Streaming device(uniform(8, 3, 3));
  const SequencePtr sequence = each_once(8);
  device.begin(0, sequence);
  device.visit(0, {0});
  device.visit(0, {1});
  std::atomic<int> late_reads = 0;
  std::latch begun(2);
  const auto late = [&](int lane) {
    return [&, lane] {
      device.begin(lane, sequence);
      begun.arrive_and_wait();
      for (const Step& step : *sequence) {
        device.visit(lane, step);
        ++late_reads;
      }
      device.end(lane);
    };
  };
  BlockedThread first(late(1));
  BlockedThread second(late(2));
  first.await_blocked();
  second.await_blocked();
  EXPECT_EQ(late_reads, 0);
  for (WeightId weight = 2; weight < 8; ++weight) {
    device.visit(0, {weight});
  }
  EXPECT_EQ(device.streamer().counts().misses, 0U) << "nobody took a place from it";
  device.end(0);
  first.join();
  second.join();
  EXPECT_EQ(device.streamer().counts().bytes_used, 16 * kUnit) << "one pass for the first, one for the others";
  EXPECT_EQ(device.streamer().counts().passes.passes, 2U);
  EXPECT_EQ(device.streamer().counts().passes.calls, 3U);
  EXPECT_GT(device.streamer().counts().door_us, 0);
  EXPECT_EQ(device.finish(), "");
}

/// A short call of one module waits for no long one of another, however often it is made.
TEST(SharedPass, ModulesHavePassesOfTheirOwn) {
  const Deadline deadline;
  Streaming device(uniform(16, 6, 3));
  const SequencePtr long_calls = each_once(12);
  const SequencePtr short_calls = share({{12}, {13}, {14}, {15}});
  device.streamer().begin(0, long_calls, 0);
  device.visit(0, {0});
  in_parallel(2, [&](int thread) {
    for (int call = 0; call < 5; ++call) {
      device.streamer().begin(1 + thread, short_calls, 12);
      finish(device, 1 + thread, *short_calls);
    }
  });
  finish(device, 0, *long_calls, 1);
  EXPECT_LT(device.streamer().counts().calls_us + device.streamer().counts().door_us, 4e6)
      << "nobody ran out of patience";
  EXPECT_EQ(device.finish(), "");
}

/// On the host a call is through long before its first weight has arrived.
TEST(SharedPass, APassIsOpenUntilTheOneBeforeHasArrived) {
  const Deadline deadline;
  Device device(8, 3, 0, Order::copies_late, 3);
  device.use_direct_store();
  device.use_streamer();
  const SequencePtr sequence = each_once(8);
  const auto call = [&](int lane) {
    device.streamer->begin(lane, sequence);
    for (WeightId weight = 0; weight < 8; ++weight) {
      device.visit(lane, weight);
    }
    device.streamer->end(lane);
  };
  call(0);
  device.slow.hold(Call::synchronize);
  BlockedThread first([&] { call(1); });
  device.slow.await_caller();
  BlockedThread second([&] { call(2); });
  second.await_blocked();
  device.slow.release();
  first.join();
  second.join();
  EXPECT_EQ(device.streamer->counts().bytes_used, 16 * kUnit) << "one pass for the first, one for the others";
  device.expect_no_problems();
}

TEST(SharedPass, WhoWaitsForCopiesWaitsUntilTheyAreEnqueued) {
  const Deadline deadline;
  Device device(8, 3, 2, Order::copies_late, 2);
  device.use_staged_store();
  device.use_streamer();
  device.slow.hold(Call::copy);
  device.streamer->begin(0, each_once(8));
  device.slow.await_caller();
  device.streamer->begin(1, share({{7}}));
  BlockedThread other([&] { device.visit(1, 7); });
  other.await_blocked();
  EXPECT_FALSE(other.done());
  device.slow.release();
  other.join();
  device.streamer->end(1);
  for (WeightId weight = 0; weight < 8; ++weight) {
    device.visit(0, weight);
  }
  device.streamer->end(0);
  device.expect_no_problems();
}

/// What is copied there comes later, when the lane has gone on: see Note [Late fences] in core/link.h.
TEST(SharedPass, WhatIsReadIsMarkedAtOnce) {
  Streaming device(uniform(8, 3, 2));
  const SequencePtr sequence = each_once(8);
  device.call(0, sequence);
  EXPECT_EQ(device.link().calls(Call::record_now), 0U) << "a lane alone marks it when somebody waits";
  device.begin(0, sequence);
  device.begin(1, sequence);
  device.visit(0, {0});
  device.visit(1, {0});
  EXPECT_EQ(device.link().calls(Call::record_now), 2U);
}

/// A lane alone does not wait for that, nor for anything else of the device.
TEST(SharedPass, ACallAloneWaitsForNoPassOfItsOwn) {
  Streaming device(uniform(8, 3, 2));
  for (int call = 0; call < 3; ++call) {
    device.call(1, each_once(8));
  }
  EXPECT_EQ(device.link().calls(Call::synchronize), 0U);
}

std::vector<Batch> batches_of(const std::vector<std::uint64_t>& bytes) {
  std::vector<Batch> batches;
  for (const std::uint64_t each : bytes) {
    batches.push_back({{{0, 0, each}}, {}, std::make_shared<Arrival>()});
  }
  return batches;
}

TEST(UnderWay, WaitsForNoMoreThanHasToArrive) {
  UnderWay under_way(12);
  const auto before = [&](std::uint64_t wanted) { return under_way.before(wanted, 0, 12); };
  const std::vector<Batch> batches = batches_of({4, 3, 2});
  EXPECT_EQ(before(12), nullptr);
  under_way.add(batches, 0, 0);
  EXPECT_EQ(before(1), batches[0].arrival) << "half the ring";
  EXPECT_EQ(before(2), batches[1].arrival);
  EXPECT_EQ(before(5), batches[0].arrival) << "twice what is wanted";
  EXPECT_EQ(before(8), batches[1].arrival) << "and no more than the ring";
  EXPECT_EQ(before(12), batches[2].arrival);
  under_way.note_arrived(batches[1].arrival);
  EXPECT_EQ(before(4), nullptr) << "what came before it has arrived, too";
  EXPECT_EQ(before(11), batches[2].arrival);
  under_way.note_arrived(batches[0].arrival); // again: nothing
  EXPECT_EQ(before(11), batches[2].arrival);
}

TEST(UnderWay, ForgetsWhatIsFartherBackThanTheRingIsLong) {
  UnderWay under_way(10);
  const std::vector<Batch> batches = batches_of({5, 5, 5});
  under_way.add(batches, 0, 0);
  EXPECT_EQ(under_way.before(5, 0, 10), batches[1].arrival);
  under_way.note_arrived(batches[0].arrival); // long past
  EXPECT_EQ(under_way.before(5, 0, 10), batches[1].arrival);
}

TEST(UnderWay, EachKindOfCallsHasItsShare) {
  UnderWay under_way(16);
  const std::vector<Batch> batches = batches_of({2, 2, 2, 2});
  under_way.add({batches[0]}, 0, 1);
  under_way.add({batches[1]}, 0, 2);
  under_way.add({batches[2]}, 0, 1);
  under_way.add({batches[3]}, 0, 2);
  EXPECT_EQ(under_way.before(1, 1, 12), nullptr);
  EXPECT_EQ(under_way.before(2, 1, 8), batches[0].arrival) << "of half the share";
  EXPECT_EQ(under_way.before(2, 2, 4), batches[1].arrival) << "twice what is wanted";
  EXPECT_EQ(under_way.before(1, 2, 4), batches[3].arrival);
}

TEST(SharedPass, ACallThatEndsEarlyHoldsNobodyUp) {
  Streaming device(uniform(12, 3, 2));
  const SequencePtr sequence = each_once(12);
  device.begin(0, sequence);
  device.begin(1, sequence);
  BlockedThread other([&] { finish(device, 1, *sequence); });
  other.await_blocked();
  device.visit(0, {0});
  device.end(0); // as when the model raises
  other.join();
  EXPECT_EQ(device.streamer().counts().bytes_used, 12 * kUnit);
  EXPECT_EQ(device.finish(), "");
}

TEST(SharedPass, ACallThatStandsStillIsLeftBehind) {
  Streaming device(uniform(12, 3, 2));
  const SequencePtr sequence = each_once(12);
  device.begin(0, sequence);
  device.begin(1, sequence);
  device.visit(0, {0});
  finish(device, 1, *sequence); // without end, if it waited for the other
  finish(device, 0, *sequence, 1);
  EXPECT_EQ(device.finish(), "");
}

/// Branches, early exits, other orders, other weights.
TEST(SharedPass, CallsThatDifferAreAllServed) {
  for (std::uint32_t seed = 0; seed < 30; ++seed) {
    SCOPED_TRACE(seed);
    Dice dice(seed);
    Shape shape = uniform(0, 0, static_cast<int>(dice.from(2, 5)));
    shape.units = dice.sizes(dice.from(4, 16), 3);
    shape.order = kOrders[seed % kOrders.size()];
    shape.seed = seed;
    shape.batch_units = dice.from(0, 6);
    const SequencePtr common = each_once(shape.units.size());
    std::vector<Sequence> own;
    for (int lane = 0; lane < shape.lanes; ++lane) {
      own.push_back(dice.chance(50) ? *common : dice.sequence(12, shape.units.size(), 2));
      shape.ring_units = std::max(shape.ring_units, largest(shape.units, own.back()));
    }
    shape.ring_units += dice.from(0, 12);
    Streaming device(shape);
    in_parallel(shape.lanes, [&](int lane) {
      Dice choices(seed * 16 + static_cast<std::uint32_t>(lane));
      for (int call = 0; call < 6; ++call) {
        device.begin(lane, choices.chance(70) ? share(own[lane]) : common); // not always what comes
        for (const Step& step : own[lane]) {
          if (choices.chance(3)) {
            break;
          }
          device.visit(lane, step);
        }
        device.end(lane);
      }
    });
    ASSERT_EQ(device.finish(), "");
  }
}

} // namespace
} // namespace offload::test
