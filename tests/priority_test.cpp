// Calls that are more urgent than others: at the gate, and on the link.

#include <gtest/gtest.h>

#include <deque>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include <offload/device/lane_gate.h>
#include <offload/ring/scheduler.h>

#include "point.h"
#include "streaming.h"
#include "threads.h"

namespace offload::test {
namespace {

TEST(Priority, IsThatOfTheInnermostGuardOfTheThread) {
  EXPECT_EQ(PriorityGuard::current(), Priority::normal);
  const PriorityGuard low(Priority::low);
  {
    const PriorityGuard high(Priority::high);
    EXPECT_EQ(PriorityGuard::current(), Priority::high);
    in_parallel(1, [](int) { EXPECT_EQ(PriorityGuard::current(), Priority::normal) << "of another thread"; });
  }
  EXPECT_EQ(PriorityGuard::current(), Priority::low);
}

/// Threads that wait for the one lane of a gate, in the order in which they are told to come.
class Queue {
 public:
  explicit Queue(LaneGate& gate) : gate_(gate) {}

  void come(const char* name, Priority priority) {
    threads_.emplace_back([this, name, priority] {
      const LaneLock lane(gate_, nullptr, 0, LaneGate::kAll, priority);
      order_.note(name);
    });
    threads_.back().await_blocked();
  }

  void come_exclusively(const char* name) {
    threads_.emplace_back([this, name] {
      const ExclusiveLaneLock lane(gate_);
      order_.note(name);
    });
    threads_.back().await_blocked();
  }

  std::vector<std::string> order() {
    threads_.clear();
    return order_.all();
  }

 private:
  LaneGate& gate_;
  Notes order_;
  std::deque<BlockedThread> threads_;
};

TEST(Priority, TheMostUrgentCallGoesFirst) {
  LaneGate gate(1);
  const int lane = gate.acquire();
  Queue queue(gate);
  queue.come("low", Priority::low);
  queue.come("normal", Priority::normal);
  queue.come("high", Priority::high);
  queue.come("second low", Priority::low);
  queue.come("second high", Priority::high);
  gate.release(lane);
  EXPECT_EQ(queue.order(), (std::vector<std::string>{"high", "second high", "normal", "low", "second low"}));
}

TEST(Priority, ACallIsOvertakenOnlySoOften) {
  LaneGate gate(1);
  const int lane = gate.acquire();
  Queue queue(gate);
  queue.come("low", Priority::low);
  std::vector<std::string> expected;
  for (int i = 0; i < LaneGate::kMostOvertaking; ++i) {
    queue.come("high", Priority::high);
    expected.emplace_back("high");
  }
  queue.come("late", Priority::high);
  expected.insert(expected.end(), {"low", "late"});
  gate.release(lane);
  EXPECT_EQ(queue.order(), expected);
}

TEST(Priority, NoCallGoesBeforeAnExclusiveCaller) {
  LaneGate gate(1);
  const int lane = gate.acquire();
  Queue queue(gate);
  queue.come("low", Priority::low);
  queue.come_exclusively("exclusive"); // before all calls
  queue.come("high", Priority::high);
  gate.release(lane);
  EXPECT_EQ(queue.order(), (std::vector<std::string>{"exclusive", "high", "low"}));
}

/// Calls of two modules that read all their weights in turn. Threads enqueue as far ahead of the device as they may,
/// and the link brings one batch after another.
class TwoModules {
 public:
  static constexpr WeightId kWeights = 50; // of each

  TwoModules(Priority first, Priority second) {
    lanes_[0].priority = first;
    lanes_[1].priority = second;
    for (WeightId module = 0; module < 2; ++module) {
      Sequence sequence;
      for (WeightId i = 0; i < kWeights; ++i) {
        sequence.push_back({module * kWeights + i});
      }
      lanes_[module].sequence = share(sequence);
    }
  }

  /// How many weights of each the link has brought, of so many.
  std::vector<int> bring(int weights) {
    for (const int lane : {0, 1}) {
      begin(lane);
    }
    while (brought_[0] + brought_[1] < weights) {
      if (!enqueue(brought_[0] % 2) && !enqueue(0) && !enqueue(1) && !bring()) {
        ADD_FAILURE() << "everybody waits";
        break;
      }
    }
    return {brought_[0], brought_[1]};
  }

 private:
  struct Lane {
    Priority priority = Priority::normal;
    SequencePtr sequence;
    std::size_t at = 0;
    ArrivalPtr awaits; // before it looks again
  };

  /// True when the link had something to bring.
  bool bring() {
    if (batches_.empty()) {
      return false;
    }
    const Batch batch = std::move(batches_.front());
    batches_.erase(batches_.begin());
    for (const Fetch& fetch : batch.fetches) {
      ++brought_[fetch.weight / kWeights];
    }
    arrived_.insert(batch.arrival);
    return true;
  }

  /// True when the lane's thread went on.
  bool enqueue(int number) {
    Lane& lane = lanes_[number];
    if (lane.awaits && arrived_.count(lane.awaits) == 0) {
      return false;
    }
    if (lane.awaits) {
      scheduler_.arrive(number, std::exchange(lane.awaits, nullptr), batches_);
    }
    const Step& step = (*lane.sequence)[lane.at];
    const auto outcome = scheduler_.acquire(number, step, batches_);
    if (outcome == Scheduler::Outcome::waits_for_copies) {
      lane.awaits = scheduler_.awaited(number, step);
    }
    if (outcome != Scheduler::Outcome::leased) {
      return false;
    }
    scheduler_.release(number, step, std::make_shared<Point>(number), batches_);
    if (++lane.at == kWeights) {
      lane.at = 0;
      scheduler_.end(number, batches_);
      begin(number);
    }
    return true;
  }

  void begin(int number) {
    const WeightId module = static_cast<WeightId>(number) * kWeights;
    scheduler_.begin(number, lanes_[number].sequence, batches_, module, lanes_[number].priority);
  }

  Scheduler scheduler_{std::vector<std::uint64_t>(std::size_t{2} * kWeights, 512), std::uint64_t{24} * 512, 512, 2};
  std::vector<Batch> batches_;
  std::set<ArrivalPtr> arrived_;
  Lane lanes_[2];
  int brought_[2] = {};
};

TEST(Priority, CallsOfTheSamePriorityShareTheLinkEqually) {
  const std::vector<int> brought = TwoModules(Priority::normal, Priority::normal).bring(3000);
  EXPECT_NEAR(brought[0], brought[1], 100);
}

TEST(Priority, AMoreUrgentCallGetsMoreOfTheLink) {
  const std::vector<int> brought = TwoModules(Priority::low, Priority::normal).bring(3000);
  EXPECT_GT(brought[1], 2 * brought[0]);
  const std::vector<int> highest = TwoModules(Priority::low, Priority::high).bring(3000);
  EXPECT_GT(highest[1], 4 * highest[0]);
  EXPECT_GT(highest[0], 200) << "and the other its part";
}

} // namespace
} // namespace offload::test
