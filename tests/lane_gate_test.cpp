#include <gtest/gtest.h>

#include <deque>

#include <offload/lane_gate.h>

#include "threads.h"

namespace offload::test {
namespace {

TEST(LaneGate, GivesEachCallALaneOfItsOwn) {
  LaneGate gate(3);
  const LaneVisit a(gate);
  const LaneVisit b(gate);
  const LaneVisit c(gate);
  EXPECT_EQ(a.lane(), 0);
  EXPECT_EQ(b.lane(), 1);
  EXPECT_EQ(c.lane(), 2);
}

TEST(LaneGate, GivesTheLaneThatWasLeftLast) {
  LaneGate gate(3);
  const int first = gate.enter();
  const int second = gate.enter();
  gate.leave(first);
  gate.leave(second);
  EXPECT_EQ(gate.enter(), second);
  EXPECT_EQ(gate.enter(), first);
}

TEST(LaneGate, GivesTheLaneThatHadTheSameVisitorFirst) {
  LaneGate gate(3);
  const int a = 0;
  const int b = 0;
  const int of_a = gate.enter(&a);
  const int of_b = gate.enter(&b);
  gate.leave(of_a);
  gate.leave(of_b);
  EXPECT_EQ(gate.enter(&a), of_a);
  gate.leave(of_a);
  EXPECT_EQ(gate.enter(&b), of_b);
  EXPECT_EQ(gate.enter(&b), of_a); // the one that was left last: its own is taken
}

TEST(LaneGate, LetsCallsInInTheOrderInWhichTheyCame) {
  LaneGate gate(1);
  std::mutex mutex;
  std::vector<int> order;
  std::deque<BlockedThread> threads;
  const int lane = gate.enter();
  for (int i = 0; i < 5; ++i) {
    threads.emplace_back([&, i] {
      const LaneVisit visit(gate);
      const std::lock_guard lock(mutex);
      order.push_back(i);
    });
    threads.back().await_blocked();
  }
  gate.leave(lane);
  threads.clear();
  EXPECT_EQ(order, std::vector<int>({0, 1, 2, 3, 4}));
}

TEST(LaneGate, KeepsTheLoneVisitorAloneAndInTurn) {
  LaneGate gate(2);
  std::mutex mutex;
  std::vector<std::string> order;
  const auto note = [&](const char* what) {
    const std::lock_guard lock(mutex);
    order.emplace_back(what);
  };
  const int lane = gate.enter();
  BlockedThread alone([&] {
    const LoneVisit visit(gate);
    note("alone");
  });
  alone.await_blocked();
  BlockedThread later([&] {
    const LaneVisit visit(gate);
    note("later");
  });
  later.await_blocked();
  EXPECT_FALSE(alone.done()) << "a lane is taken";
  EXPECT_FALSE(later.done()) << "a lane is free, but the visitor came first";
  note("leave");
  gate.leave(lane);
  alone.join();
  later.join();
  EXPECT_EQ(order, std::vector<std::string>({"leave", "alone", "later"}));
}

TEST(LaneGate, NeverLetsInMoreThanItHasLanes) {
  constexpr int kLanes = 2;
  LaneGate gate(kLanes);
  std::array<std::atomic<int>, kLanes> inside{};
  std::atomic<bool> alone = false;
  std::atomic<int> wrong = 0;
  in_parallel(4, [&](int thread) {
    for (int i = 0; i < 200; ++i) {
      if (thread == 0 && i % 10 == 0) {
        const LoneVisit visit(gate);
        alone = true;
        wrong += inside[0] + inside[1] == 0 ? 0 : 1;
        alone = false;
      } else {
        const LaneVisit visit(gate);
        wrong += inside[visit.lane()]++ == 0 && !alone ? 0 : 1;
        --inside[visit.lane()];
      }
    }
  });
  EXPECT_EQ(wrong, 0);
}

} // namespace
} // namespace offload::test
