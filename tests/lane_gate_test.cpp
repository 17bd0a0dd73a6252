#include <gtest/gtest.h>

#include <deque>
#include <future>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include <offload/device/lane_gate.h>

#include "threads.h"

namespace offload::test {
namespace {

TEST(LaneGate, GivesEachCallALaneOfItsOwn) {
  LaneGate gate(3);
  const LaneLock a(gate);
  const LaneLock b(gate);
  const LaneLock c(gate);
  EXPECT_EQ(a.lane(), 0);
  EXPECT_EQ(b.lane(), 1);
  EXPECT_EQ(c.lane(), 2);
}

TEST(LaneGate, CountsCallersThatAreInACallOrWait) {
  LaneGate gate(1);
  EXPECT_EQ(gate.callers(), 0);
  std::optional<LaneLock> first(gate);
  BlockedThread second([&] { const LaneLock lane(gate); });
  second.await_blocked();
  EXPECT_EQ(gate.callers(), 2);
  first.reset();
  second.join();
  EXPECT_EQ(gate.callers(), 0);
}

TEST(LaneGate, GivesTheLaneThatWasReleasedLast) {
  LaneGate gate(3);
  const int first = gate.acquire();
  const int second = gate.acquire();
  gate.release(first);
  gate.release(second);
  EXPECT_EQ(gate.acquire(), second);
  EXPECT_EQ(gate.acquire(), first);
}

TEST(LaneGate, GivesTheLaneThatHadTheSameCallerFirst) {
  LaneGate gate(3);
  const int a = 0;
  const int b = 0;
  const int of_a = gate.acquire(&a);
  const int of_b = gate.acquire(&b);
  gate.release(of_a);
  gate.release(of_b);
  EXPECT_EQ(gate.acquire(&a), of_a);
  gate.release(of_a);
  EXPECT_EQ(gate.acquire(&b), of_b);
  EXPECT_EQ(gate.acquire(&b), of_a); // the one that was released last: its own is taken
}

TEST(LaneGate, GivesUsualLanesFirst) {
  LaneGate gate(3);
  const int here = 0;
  const int elsewhere = 0;
  gate.set_usual_lanes(1);
  const int first = gate.acquire(&elsewhere);
  EXPECT_EQ(first, 0);
  const int second = gate.acquire(&here);
  EXPECT_EQ(second, 1) << "while the usual ones are taken";
  gate.release(first);
  gate.release(second);
  EXPECT_EQ(gate.acquire(&here), 0) << "though it had the other one";
}

TEST(LaneGate, LetsCallsInInTheOrderInWhichTheyCame) {
  LaneGate gate(1);
  std::mutex mutex;
  std::vector<int> order;
  std::deque<BlockedThread> threads;
  const int lane = gate.acquire();
  for (int i = 0; i < 5; ++i) {
    threads.emplace_back([&, i] {
      const LaneLock held(gate);
      const std::lock_guard lock(mutex);
      order.push_back(i);
    });
    threads.back().await_blocked();
  }
  gate.release(lane);
  threads.clear();
  EXPECT_EQ(order, std::vector<int>({0, 1, 2, 3, 4}));
}

TEST(LaneGate, KeepsTheExclusiveCallerAloneAndInTurn) {
  LaneGate gate(2);
  Notes order;
  const int lane = gate.acquire();
  BlockedThread alone([&] {
    const ExclusiveLaneLock held(gate);
    order.note("alone");
  });
  alone.await_blocked();
  BlockedThread later([&] {
    const LaneLock held(gate);
    order.note("later");
  });
  later.await_blocked();
  EXPECT_FALSE(alone.done()) << "a lane is taken";
  EXPECT_FALSE(later.done()) << "a lane is free, but the exclusive caller was first";
  order.note("release");
  gate.release(lane);
  alone.join();
  later.join();
  EXPECT_EQ(order.all(), std::vector<std::string>({"release", "alone", "later"}));
}

TEST(LaneGate, LetsTheExclusiveCallerGoBeforeThoseWhoWait) {
  LaneGate gate(1);
  Notes order;
  const int lane = gate.acquire();
  BlockedThread call([&] {
    const LaneLock held(gate);
    order.note("call");
  });
  call.await_blocked();
  BlockedThread alone([&] {
    const ExclusiveLaneLock held(gate);
    order.note("alone");
  });
  alone.await_blocked();
  BlockedThread second([&] {
    const ExclusiveLaneLock held(gate);
    order.note("second");
  });
  second.await_blocked();
  gate.release(lane);
  call.join();
  alone.join();
  second.join();
  EXPECT_EQ(order.all(), std::vector<std::string>({"alone", "second", "call"}));
}

TEST(LaneGate, MakesACallBetweenTwoWhoWantToBeAlone) {
  LaneGate gate(1);
  Notes order;
  gate.acquire_exclusive();
  BlockedThread call([&] {
    const int lane = gate.acquire();
    order.note("call");
    gate.release(lane);
  });
  call.await_blocked();
  BlockedThread waiting([&] { // before the first one releases
    const ExclusiveLaneLock held(gate);
    order.note("waiting");
  });
  waiting.await_blocked();
  gate.release_exclusive();
  waiting.join();
  call.join();
  EXPECT_EQ(order.all(), std::vector<std::string>({"waiting", "call"}));

  order.clear();
  const int lane = gate.acquire();
  std::promise<void> first_has_left, all_wait;
  BlockedThread overtaken([&] {
    const LaneLock held(gate);
    order.note("overtaken");
    all_wait.get_future().wait();
  });
  overtaken.await_blocked();
  BlockedThread first([&] {
    gate.acquire_exclusive();
    order.note("first");
    BlockedThread last([&] {
      const LaneLock held(gate);
      order.note("last");
    });
    last.await_blocked();
    gate.release_exclusive();
    first_has_left.set_value();
    {
      const ExclusiveLaneLock again(gate);
      order.note("again");
    }
    last.join();
  });
  first.await_blocked();
  gate.release(lane);
  first_has_left.get_future().wait();
  first.await_blocked();
  all_wait.set_value();
  first.join();
  overtaken.join();
  EXPECT_EQ(order.all(), std::vector<std::string>({"first", "overtaken", "again", "last"}));
}

TEST(LaneGate, AdmitsACallWhenItsMemoryIsFree) {
  LaneGate gate(3);
  gate.acquire_exclusive();
  gate.set_room(100);
  gate.release_exclusive();
  const int first = gate.acquire(nullptr, 60);
  const int beside = gate.acquire(nullptr, 40);
  BlockedThread large([&] { gate.release(gate.acquire(nullptr, 50)); });
  large.await_blocked();
  BlockedThread small([&] { gate.release(gate.acquire(nullptr, 10)); });
  small.await_blocked(); // nobody overtakes
  gate.release(beside);
  EXPECT_FALSE(large.done());
  gate.release(first);
  large.join();
  small.join();
}

TEST(LaneGate, AdmitsACallThatNeedsMoreThanThereIsWhenItIsAlone) {
  LaneGate gate(2);
  gate.set_room(100);
  const int lane = gate.acquire(nullptr, 1000);
  EXPECT_TRUE(gate.extend(lane, 100));
  EXPECT_FALSE(gate.extend(lane, 101)) << "it has claimed what there is";
  gate.release(lane);
}

TEST(LaneGate, RaisesAClaimAsFarAsOthersLeaveRoom) {
  LaneGate gate(2);
  gate.set_room(100);
  const int a = gate.acquire(nullptr, 10);
  const int b = gate.acquire(nullptr, 30);
  EXPECT_TRUE(gate.extend(a, 70));
  EXPECT_FALSE(gate.extend(b, 31));
  EXPECT_TRUE(gate.extend(b, 20)) << "less than it has";
  EXPECT_FALSE(gate.set_state(1));
  gate.release(a);
  EXPECT_TRUE(gate.set_state(40));
  EXPECT_TRUE(gate.extend(b, 60));
  EXPECT_FALSE(gate.extend(b, 61)) << "state stays when calls end";
  gate.release(b);
}

TEST(LaneGate, HoldsThoseThatComeToALowerRoomWhileCallsTakeMore) {
  LaneGate gate(3);
  gate.set_room(100);
  std::optional<LaneLock> first(std::in_place, gate, nullptr, 60);
  EXPECT_FALSE(gate.lower_room(50));
  EXPECT_EQ(gate.room(), 50U);
  BlockedThread second([&] { const LaneLock lane(gate, nullptr, 30); });
  second.await_blocked();
  EXPECT_FALSE(gate.lower_room(50));
  first.reset();
  second.join();
  EXPECT_TRUE(gate.lower_room(50));
}

TEST(LaneGate, GivesTheExclusiveCallerAllTheMemory) {
  LaneGate gate(2);
  gate.set_room(100);
  {
    const ExclusiveLaneLock alone(gate);
    EXPECT_TRUE(gate.extend(0, 100));
    EXPECT_FALSE(gate.extend(0, 101));
  }
  const int lane = gate.acquire(nullptr, 100);
  EXPECT_EQ(lane, 0);
  gate.release(lane);
}

TEST(LaneGate, NeverLetsInMoreThanItHasLanesOrMemory) {
  constexpr int kLanes = 2;
  LaneGate gate(kLanes);
  std::array<std::atomic<int>, kLanes> inside{};
  std::atomic<bool> alone = false;
  std::atomic<std::uint64_t> claimed = 0;
  std::atomic<int> wrong = 0;
  gate.set_room(100);
  in_parallel(4, [&](int thread) {
    for (int i = 0; i < 200; ++i) {
      if (thread == 0 && i % 10 == 0) {
        const ExclusiveLaneLock held(gate);
        alone = true;
        wrong += inside[0] + inside[1] == 0 ? 0 : 1;
        alone = false;
      } else {
        const std::uint64_t bytes = 10ULL * static_cast<unsigned>(1 + (i + thread) % 9);
        const LaneLock held(gate, nullptr, bytes);
        wrong += inside[held.lane()]++ == 0 && !alone ? 0 : 1;
        wrong += (claimed += bytes) <= 100 ? 0 : 1;
        claimed -= bytes;
        --inside[held.lane()];
      }
    }
  });
  EXPECT_EQ(wrong, 0);
}

} // namespace
} // namespace offload::test
