// Each wait in the sources of the streamer is needed: without it, one of these tests sees wrong bytes, does not end, or
// burns a processor. tests/waits.py takes the waits out one by one and looks. Nothing here compares what was called.

#include <gtest/gtest.h>

#include <algorithm>
#include <ctime>
#include <thread>

#include <offload/device/host_link.h>
#include <offload/device/lane_gate.h>

#include "waits_device.h"

namespace offload::test {
namespace {

/// Memory that somebody else has by now.
void overwrite(std::vector<Unit>& memory) { std::memset(memory.front().bytes, 0xAB, memory.size() * kUnit); }
void expect_taken_over(const std::vector<Unit>& memory) {
  const std::byte* begin = memory.front().bytes;
  EXPECT_TRUE(std::all_of(begin, begin + memory.size() * kUnit, [](std::byte b) { return b == std::byte{0xAB}; }))
      << "the next owner of the memory has wrong bytes";
}

/// True when this process computes while this thread sleeps.
bool is_busy() {
  const std::clock_t before = std::clock(); // processor time of all threads
  std::this_thread::sleep_for(std::chrono::milliseconds(600));
  return std::clock() - before > CLOCKS_PER_SEC / 20;
}

// The issuing thread's loop looks again at what it waited for: without these two waits all bytes are right. But link
// and callers need the processor that it would burn.

TEST_F(WaitsBytes, AStoreWithoutAFreeBufferSleeps) {
  Device device(3, 3, 2);
  device.use_staged_store();
  device.slow.hold(Call::synchronize);
  device.issue_all();
  EXPECT_FALSE(is_busy()) << "busy wait: for a buffer that the link has not read";
  device.slow.release();
  device.fake.run_all();
  device.store->drain();
  device.expect_all_in_ring();
}

TEST(WaitsBytesDeathTest, AStoreWhoseBufferIsNotFilledSleeps) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const auto wait_for_nobody = [] {
    Device device(1, 1, 2);
    device.use_staged_store(0); // no thread fills: it waits for ever
    device.issue_all();
    std::_Exit(is_busy() ? 1 : 0);
  };
  EXPECT_EXIT(wait_for_nobody(), testing::ExitedWithCode(0), "") << "busy wait: for a buffer that is not filled";
}

/// One call that reads `weights` through a ring of two. More buffers than batches: the host has no other reason to let
/// the device run.
void expect_right(std::size_t weights, Order order) {
  for (const bool staged : {false, true}) {
    Device device(weights, 2, 16, order);
    staged ? device.use_staged_store() : device.use_direct_store();
    device.use_streamer();
    device.streamer->begin(0, each_once(weights));
    for (WeightId weight = 0; weight < weights; ++weight) {
      device.visit(0, weight);
    }
    device.streamer->end(0);
    device.store->drain();
    device.expect_no_problems();
  }
}

TEST_F(WaitsBytes, ALaneReadsWhatHasArrived) { expect_right(4, Order::copies_late); }
TEST_F(WaitsBytes, ACopyOverwritesWhatHasBeenRead) { expect_right(6, Order::compute_late); }

/// The issuing thread waits for a reader long after the store was given the batch. By then the lane has gone on, and
/// the copy must not wait for that as well.
TEST_F(WaitsBytes, ACopyWaitsForItsReadersAndNotForWhatTheyDidSince) {
  Device device(1, 1, 2, Order::compute_late);
  device.use_staged_store();
  device.slow.hold(Call::wait);
  const auto arrival = std::make_shared<Arrival>();
  device.store->issue({{{0, 0, kUnit}}, {device.slow.record_used(0)}, arrival});
  Unit other{};
  device.fake.read(0, other.bytes, device.addresses[0].memory, kUnit, "what the copy waits for needlessly");
  device.slow.release();
  device.store->drain();
  device.fake.synchronize(*arrival->fence);
  EXPECT_EQ(device.fake.problems(), std::vector<std::string>());
}

/// Whoever asks does not wait for it either.
TEST_F(WaitsBytes, WhatTheStoreStillHoldsHasNotBeenUsed) {
  Device device(4, 4, 8);
  device.use_staged_store();
  device.use_streamer();
  device.slow.hold(Call::copy);
  device.streamer->begin(0, each_once(4));
  EXPECT_EQ(device.streamer->counts().bytes_used, 0U);
  device.slow.release();
  device.store->drain();
  EXPECT_GT(device.slow.bytes(), 0U);
  EXPECT_EQ(device.streamer->counts().bytes_used, 0U) << "it is ahead";
  device.streamer->end(0);
}

/// With the batch that could not wait its readers are dropped: the next copy into the place waits for none of them.
TEST_F(WaitsBytes, ACopyAfterOneThatFailedOverwritesWhatHasBeenRead) {
  for (const bool staged : {false, true}) {
    Device device(2, 1, 16, Order::compute_late, 2);
    staged ? device.use_staged_store() : device.use_direct_store();
    device.use_streamer();
    device.visit(0, 0);
    device.fake.refuse(Call::wait, 0);
    EXPECT_THROW(device.streamer->acquire(1, {1}), Error);
    device.visit(1, 1);
    device.store->drain();
    device.expect_no_problems();
  }
}

TEST_F(WaitsBytes, ALaneWaitsForABatchThatIsStillStaged) {
  Device device(1, 1, 2);
  device.use_staged_store();
  device.use_streamer();
  device.slow.hold(Call::copy);
  BlockedThread lane([&] { device.visit(0, 0); });
  device.slow.await_caller();
  lane.await_blocked();
  device.slow.release();
  lane.join();
  device.store->drain();
  device.expect_no_problems();
}

/// One thread gives the store what all have decided on.
TEST_F(WaitsBytes, ALaneWaitsForABatchThatAnotherIsToIssue) {
  Device device(2, 2, 0, Order::copies_late, 2);
  device.use_direct_store();
  device.use_streamer();
  device.slow.hold(Call::copy);
  BlockedThread issues([&] { device.visit(0, 0); });
  device.slow.await_caller();
  BlockedThread waits([&] { device.visit(1, 1); });
  waits.await_blocked();
  EXPECT_FALSE(waits.done());
  device.slow.release();
  issues.join();
  waits.join();
  device.expect_no_problems();
}

TEST_F(WaitsBytes, ALaneWithoutRoomLetsTheOtherGiveItBack) {
  Device device(2, 1, 2, Order::copies_late, 2);
  device.use_direct_store();
  device.use_streamer();
  device.streamer->acquire(0, {0});
  BlockedThread other([&] { device.visit(1, 1); });
  other.await_blocked();
  device.read(0, 0);
  device.streamer->release(0, {0});
  other.join();
  device.expect_no_problems();
}

TEST_F(WaitsBytes, NothingIsWrittenIntoTheRingOfAStreamerThatIsGone) {
  Device device(4, 4, 2);
  device.use_direct_store();
  device.use_streamer();
  device.streamer->expect(0, each_once(4));
  device.streamer.reset();
  overwrite(device.ring);
  device.fake.run_all();
  expect_taken_over(device.ring);
}

TEST_F(WaitsBytes, NothingIsWrittenIntoItByALeaseThatEndsMeanwhile) {
  Device device(2, 1, 0);
  device.use_direct_store();
  device.use_streamer();
  device.streamer->begin(0, each_once(2));
  device.streamer->acquire(0, {0});
  device.slow.hold(Call::copy);
  BlockedThread lease([&] { device.streamer->release(0, {0}); }); // there is room for the next weight
  device.slow.await_caller();
  BlockedThread end([&] {
    device.streamer->stop();
    overwrite(device.ring);
  });
  end.await_blocked();
  device.slow.release();
  lease.join();
  end.join();
  device.fake.run_all();
  expect_taken_over(device.ring);
}

TEST_F(WaitsBytes, NothingIsWrittenIntoItByTheStagerEither) {
  Device device(4, 4, 2);
  device.use_staged_store();
  device.use_streamer();
  device.slow.hold(Call::copy);
  device.streamer->expect(0, each_once(4));
  BlockedThread end([&] {
    device.streamer.reset();
    overwrite(device.ring);
  });
  device.slow.await_caller();
  end.await_blocked();
  device.slow.release();
  end.join();
  device.store.reset();
  device.fake.run_all();
  expect_taken_over(device.ring);
}

TEST_F(WaitsBytes, AStoreThatIsDestroyedSendsAllThatItWasGiven) {
  Device device(8, 8, 2);
  device.use_staged_store();
  device.slow.hold(Call::copy);
  device.issue_all();
  device.slow.await_caller(); // most batches have no buffer yet, and nobody has filled it
  BlockedThread end([&] { device.store.reset(); });
  end.await_blocked();
  device.slow.release();
  end.join();
  device.expect_all_in_ring();
}

TEST_F(WaitsBytes, NothingIsReadFromTheBuffersOfAStoreThatIsGone) {
  Device device(3, 3, 4);
  device.use_staged_store();
  device.issue_all();
  device.store.reset();
  overwrite(device.staging);
  device.expect_all_in_ring();
}

TEST_F(WaitsBytes, NorWhereTheFenceOfABufferWasRefused) {
  Device device(1, 1, 2);
  device.use_staged_store();
  device.fake.refuse(Call::record_arrived, 0);
  device.issue_all();
  device.store.reset();
  overwrite(device.staging);
  device.expect_all_in_ring();
}

TEST_F(WaitsBytes, AStoreThatGetsNoFenceFailsEveryBatchAndEnds) {
  Device device(6, 6, 2);
  device.use_staged_store();
  device.fake.refuse(Call::record_arrived, 0, 1000);
  std::vector<ArrivalPtr> arrivals;
  for (WeightId weight = 0; weight < 6; ++weight) {
    arrivals.push_back(std::make_shared<Arrival>());
    device.store->issue({{{weight, weight * kUnit, kUnit}}, {}, arrivals.back()});
  }
  device.store->drain();
  for (const ArrivalPtr& arrival : arrivals) {
    EXPECT_TRUE(arrival->issued);
    EXPECT_NE(arrival->failure, "");
  }
}

TEST_F(WaitsBytes, ABufferIsFilledAnewWhenTheLinkHasReadIt) {
  Device device(9, 9, 2);
  device.use_staged_store();
  device.issue_all();
  device.store->drain();
  device.expect_all_in_ring();
}

TEST_F(WaitsBytes, AStoreServesBatchesThatComeWhenItRests) {
  Device device(6, 2, 2);
  device.use_staged_store(2);
  device.use_streamer();
  for (int pass = 0; pass < 3; ++pass) {
    device.streamer->begin(0, each_once(6));
    for (WeightId weight = 0; weight < 6; ++weight) {
      device.visit(0, weight);
      device.store->drain();
    }
    device.streamer->end(0);
  }
  device.expect_no_problems();
}

TEST_F(WaitsBytes, OfALinkWithinTheHostAreOver) {
  constexpr std::size_t kBytes = 32 << 20; // much longer to copy than to look at the end of
  const std::vector<std::byte> source(kBytes, std::byte{1});
  for (const bool by_lane : {false, true}) {
    std::vector<std::byte> target(kBytes);
    const auto link = make_host_link();
    std::this_thread::sleep_for(std::chrono::milliseconds(20)); // its thread rests
    link->copy(target.data(), source.data(), kBytes);
    const FencePtr arrived = link->record_arrived();
    by_lane ? link->wait_arrived(0, *arrived) : link->synchronize(*arrived);
    EXPECT_EQ(target.back(), std::byte{1}) << "the target has wrong bytes";
  }
}

TEST_F(WaitsBytes, ACallWritesNothingInALaneThatIsTaken) {
  LaneGate gate(1);
  int memory = 1;
  const int lane = gate.acquire();
  BlockedThread other([&] {
    const LaneLock held(gate);
    memory = 2;
  });
  other.await_blocked();
  EXPECT_EQ(memory, 1) << "the lane has wrong bytes";
  gate.release(lane);
  other.join();
  EXPECT_EQ(memory, 2);
}

TEST_F(WaitsBytes, ACallAloneWritesNothingInALaneThatIsTaken) {
  LaneGate gate(2);
  int memory = 1;
  const int lane = gate.acquire();
  BlockedThread alone([&] {
    const ExclusiveLaneLock held(gate);
    memory = 2;
  });
  alone.await_blocked();
  EXPECT_EQ(memory, 1) << "the lane has wrong bytes";
  gate.release(lane);
  alone.join();
  EXPECT_EQ(memory, 2);
}

} // namespace
} // namespace offload::test
