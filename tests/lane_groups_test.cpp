// A gate of several modules.

#include <gtest/gtest.h>

#include <atomic>
#include <optional>
#include <string>
#include <vector>

#include <offload/device/lane_gate.h>

#include "threads.h"

namespace offload::test {
namespace {

TEST(LaneGroups, AGroupThatIsTakenExclusivelyStopsNoOther) {
  LaneGate gate(3);
  const int ours = 0;
  const int others = 0;
  std::optional<LaneLock> call(std::in_place, gate, nullptr, 0, &ours);
  std::atomic<bool> has_it = false;
  std::atomic<bool> let_go = false;
  BlockedThread alone([&] {
    const ExclusiveLaneLock held(gate, &ours);
    has_it = true;
    has_it.notify_all();
    let_go.wait(false);
  });
  alone.await_blocked();
  EXPECT_FALSE(has_it) << "while a call of the group is in flight";
  {
    const LaneLock other(gate, nullptr, 0, &others);
  }
  call.reset();
  has_it.wait(false);
  Notes order;
  BlockedThread later([&] {
    const LaneLock lane(gate, nullptr, 0, &ours);
    order.note("ours");
  });
  later.await_blocked();
  BlockedThread all([&] {
    const ExclusiveLaneLock lane(gate);
    order.note("all");
  });
  all.await_blocked();
  EXPECT_EQ(order.all(), std::vector<std::string>{}) << "all are not free while one group is not";
  let_go = true;
  let_go.notify_all();
  alone.join();
  all.join();
  later.join();
  EXPECT_EQ(order.all(), (std::vector<std::string>{"all", "ours"}));
}

TEST(LaneGroups, WhoWaitsForHisGroupIsOvertakenByOtherGroupsOnly) {
  LaneGate gate(2);
  const int ours = 0;
  const int others = 0;
  gate.acquire_exclusive(&ours);
  Notes order;
  BlockedThread first([&] {
    const LaneLock lane(gate, nullptr, 0, &ours);
    order.note("first of ours");
  });
  first.await_blocked();
  BlockedThread second([&] {
    const LaneLock lane(gate, nullptr, 0, &ours);
    order.note("second of ours");
  });
  second.await_blocked();
  {
    const LaneLock lane(gate, nullptr, 0, &others);
  }
  const int one = gate.acquire(nullptr, 0, &others);
  const int two = gate.acquire(nullptr, 0, &others);
  gate.release_exclusive(&ours);
  BlockedThread other([&] {
    const LaneLock lane(gate, nullptr, 0, &others);
    order.note("other");
  });
  other.await_blocked();
  EXPECT_EQ(order.all(), std::vector<std::string>{}) << "no lane is free";
  gate.release(one);
  first.join();
  second.join();
  other.join();
  gate.release(two);
  EXPECT_EQ(order.all(), (std::vector<std::string>{"first of ours", "second of ours", "other"}));
}

TEST(LaneGroups, ExclusiveCallersOfSeveralGroupsAreAloneInTheirOwn) {
  LaneGate gate(4);
  const int groups[3] = {};
  std::atomic<int> calls[3] = {};
  std::atomic<int> exclusive[3] = {};
  std::atomic<int> wrong = 0;
  in_parallel(9, [&](int thread) {
    const int group = thread % 3;
    for (int i = 0; i < 300; ++i) {
      if (thread < 6) {
        const LaneLock lane(gate, nullptr, 0, &groups[group]);
        ++calls[group];
        wrong += exclusive[group] != 0 ? 1 : 0;
        --calls[group];
      } else if (i % 10 == 0) {
        const ExclusiveLaneLock all(gate);
        for (const auto& in_flight : calls) {
          wrong += in_flight != 0 ? 1 : 0;
        }
      } else {
        const ExclusiveLaneLock held(gate, &groups[group]);
        wrong += ++exclusive[group] != 1 || calls[group] != 0 ? 1 : 0;
        --exclusive[group];
      }
    }
  });
  EXPECT_EQ(wrong, 0);
  EXPECT_EQ(gate.callers(), 0);
}

} // namespace
} // namespace offload::test
