#include <gtest/gtest.h>

#include <map>

#include <offload/ring/scheduler.h>

#include "point.h"
#include "streaming.h"

namespace offload::test {
namespace {

using Weights = std::vector<WeightId>;

/// A scheduler, and what it has asked to be copied.
class Desk {
 public:
  Desk(std::vector<std::uint64_t> bytes, std::uint64_t ring, std::uint64_t batch, int lanes = 1)
      : scheduler(std::move(bytes), ring, batch, lanes) {}

  void begin(int lane, const SequencePtr& sequence) {
    scheduler.begin(lane, sequence, batches_);
    arrive(lane);
  }
  bool acquire(int lane, const Step& step) {
    const auto outcome = scheduler.acquire(lane, step, batches_);
    arrive(lane);
    return outcome == Scheduler::Outcome::leased;
  }
  void release(int lane, const Step& step) {
    scheduler.release(lane, step, std::make_shared<Point>(lane), batches_);
    arrive(lane);
  }
  void end(int lane) {
    scheduler.end(lane, batches_);
    arrive(lane);
  }
  void visit(int lane, const Step& step) {
    ASSERT_TRUE(acquire(lane, step));
    release(lane, step);
  }
  void pass(int lane, const SequencePtr& sequence) {
    for (const Step& step : *sequence) {
      visit(lane, step);
    }
  }

  /// The weights to copy since this was last asked, by batch.
  std::vector<Weights> batches() {
    std::vector<Weights> all;
    for (const Batch& batch : batches_) {
      Weights& weights = all.emplace_back();
      for (const Fetch& fetch : batch.fetches) {
        weights.push_back(fetch.weight);
      }
    }
    batches_.clear();
    return all;
  }
  Weights fetched() {
    Weights all;
    for (const Weights& batch : batches()) {
      all.insert(all.end(), batch.begin(), batch.end());
    }
    return all;
  }

  Scheduler scheduler;

 private:
  /// All that is asked for is there at once.
  void arrive(int lane) {
    for (std::size_t known = 0; known < batches_.size();) {
      known = batches_.size();
      scheduler.arrive(lane, batches_.back().arrival, batches_);
    }
  }

  std::vector<Batch> batches_;
};

TEST(Scheduler, PrefetchesAsFarAsTheRingAllows) {
  Desk desk({4, 4, 4, 4, 4}, 12, 1);
  desk.begin(0, each_once(5));
  EXPECT_EQ(desk.fetched(), Weights({0, 1, 2}));
  EXPECT_EQ(desk.scheduler.slots().bytes_ahead(), 12U);
}

TEST(Scheduler, PrefetchesTheNextWhenAPlaceIsFree) {
  Desk desk({4, 4, 4, 4, 4}, 12, 1);
  desk.begin(0, each_once(5));
  desk.fetched();
  ASSERT_TRUE(desk.acquire(0, {0}));
  EXPECT_TRUE(desk.fetched().empty());
  desk.release(0, {0});
  EXPECT_EQ(desk.fetched(), Weights({3}));
  EXPECT_EQ(desk.scheduler.misses(), 0U);
}

TEST(Scheduler, PrefetchesIntoTheNextPass) {
  Desk desk({4, 4, 4, 4}, 8, 1);
  const SequencePtr sequence = each_once(4);
  desk.begin(0, sequence);
  desk.pass(0, sequence);
  EXPECT_EQ(desk.fetched(), Weights({0, 1, 2, 3, 0, 1}));
  desk.begin(0, sequence);
  EXPECT_TRUE(desk.fetched().empty()) << "it is under way already";
  desk.pass(0, sequence);
  EXPECT_EQ(desk.scheduler.misses(), 0U);
}

TEST(Scheduler, GathersFetchesIntoBatches) {
  Desk desk(std::vector<std::uint64_t>(40, 1), 32, 4);
  desk.begin(0, each_once(40));
  const auto first = desk.batches();
  ASSERT_GE(first.size(), 8U);
  EXPECT_EQ(first[0], Weights({0})) << "a lane that has nothing gets its first step at once";
  EXPECT_EQ(first[1], Weights({1, 2, 3, 4}));
  EXPECT_EQ(first[7], Weights({25, 26, 27, 28}));
  for (WeightId weight = 0; weight < 3; ++weight) {
    desk.visit(0, {weight});
  }
  const auto later = desk.batches();
  for (const Weights& batch : later) {
    EXPECT_EQ(batch.size(), 4U);
  }
}

TEST(Scheduler, SendsALargeWeightAlone) {
  Desk desk({1, 1, 1, 8, 1, 1, 1}, 64, 4);
  desk.begin(0, share({{0, 1, 2, 3, 4, 5, 6}}));
  EXPECT_EQ(desk.batches(), std::vector<Weights>({{0, 1, 2}, {3}, {4, 5, 6}}));
}

TEST(Scheduler, GivesAStarvedLaneOneStepAtOnce) {
  Desk desk({8, 1, 1, 1, 1, 1, 1, 1}, 8, 100);
  desk.begin(0, each_once(8));
  EXPECT_EQ(desk.fetched(), Weights({0}));
  desk.visit(0, {0});
  EXPECT_EQ(desk.batches().front(), Weights({1})) << "not held back until a batch is full";
  EXPECT_EQ(desk.scheduler.misses(), 0U);
}

TEST(Scheduler, CopiesTiedWeightsWithinTheWindowOnce) {
  Desk desk({4, 4, 4}, 12, 1);
  const SequencePtr sequence = share({{0}, {1}, {0}, {2}});
  desk.begin(0, sequence);
  desk.pass(0, sequence);
  Weights fetched = desk.fetched();
  EXPECT_EQ(fetched, Weights({0, 1, 2}));
}

TEST(Scheduler, KeepsWhatFitsWholly) {
  Desk desk({4, 4, 4}, 12, 1);
  const SequencePtr sequence = each_once(3);
  for (int pass = 0; pass < 3; ++pass) {
    desk.begin(0, sequence);
    desk.pass(0, sequence);
  }
  EXPECT_EQ(desk.fetched(), Weights({0, 1, 2}));
  EXPECT_EQ(desk.scheduler.misses(), 0U);
}

TEST(Scheduler, DropsTheBranchThatIsNotTaken) {
  Desk desk({4, 4, 4, 4}, 8, 1);
  desk.begin(0, each_once(4));
  desk.visit(0, {0});
  desk.visit(0, {2}); // 1 was under way, and 2 behind it
  EXPECT_EQ(desk.scheduler.misses(), 0U);
  desk.visit(0, {3});
  EXPECT_EQ(desk.scheduler.misses(), 0U);
}

TEST(Scheduler, CountsAMissForWhatIsOutOfOrder) {
  Desk desk({4, 4, 4, 4}, 8, 1);
  desk.begin(0, each_once(4));
  desk.visit(0, {3});
  EXPECT_EQ(desk.scheduler.misses(), 1U);
  desk.visit(0, {2});
  desk.visit(0, {1});
  EXPECT_GE(desk.scheduler.misses(), 2U);
}

TEST(Scheduler, CountsAMissForAStepThatItDoesNotKnow) {
  Desk desk({4, 4, 4, 4}, 12, 1);
  desk.begin(0, share({{0}, {1}}));
  desk.visit(0, {3});
  EXPECT_EQ(desk.scheduler.misses(), 1U);
  desk.visit(0, {0});
  desk.visit(0, {1});
  EXPECT_EQ(desk.scheduler.misses(), 1U) << "the expected steps are still on their way";
}

TEST(Scheduler, FollowsALoopThatIsShorterOrLonger) {
  const SequencePtr sequence = share({{0}, {1}, {1}, {1}, {2}});
  constexpr std::uint64_t kPasses = 3;
  const std::map<int, std::uint64_t> misses_of_a_pass = {{0, 1}, {1, 1}, {2, 0}, {3, 0}, {4, 2}, {9, 2}};
  for (const auto& [rounds, misses] : misses_of_a_pass) {
    Desk desk({4, 4, 4}, 8, 1);
    for (std::uint64_t pass = 0; pass < kPasses; ++pass) {
      desk.begin(0, sequence);
      desk.visit(0, {0});
      for (int i = 0; i < rounds; ++i) {
        desk.visit(0, {1});
      }
      desk.visit(0, {2});
    }
    EXPECT_EQ(desk.scheduler.misses(), misses * kPasses) << rounds << " rounds where three were expected";
    EXPECT_EQ(desk.scheduler.slots().leased(), Weights());
  }
}

TEST(Scheduler, FailsWhenLeasesHoldTheRingAndLeasesNothing) {
  Desk desk({4, 4, 4}, 8, 1);
  ASSERT_TRUE(desk.acquire(0, {0}));
  desk.fetched();
  EXPECT_FALSE(desk.acquire(0, {1, 2}));
  EXPECT_FALSE(desk.acquire(0, {0, 1, 2}));
  EXPECT_EQ(desk.scheduler.slots().leased(), Weights({0}));
  EXPECT_TRUE(desk.fetched().empty());
  desk.release(0, {0});
  EXPECT_TRUE(desk.acquire(0, {1, 2}));
}

TEST(Scheduler, StillExpectsTheStepThatFailed) {
  Desk desk({4, 4, 4, 4}, 8, 1);
  desk.begin(0, share({{0}, {1, 2}, {3}}));
  ASSERT_TRUE(desk.acquire(0, {0}));
  EXPECT_FALSE(desk.acquire(0, {1, 2}));
  desk.fetched();
  desk.release(0, {0});
  EXPECT_EQ(desk.fetched(), Weights({2}));
  desk.visit(0, {1, 2});
  EXPECT_EQ(desk.scheduler.misses(), 0U);
}

TEST(Scheduler, FailsWhenAStepIsLargerThanTheRing) {
  Desk desk({4, 4, 4}, 8, 1);
  desk.begin(0, share({{0}, {1, 2, 0}}));
  desk.visit(0, {0});
  EXPECT_FALSE(desk.acquire(0, {1, 2, 0}));
  desk.visit(0, {1, 2});
}

TEST(Scheduler, PlacesAStepAnewWhenItsOwnWeightsAreInTheWay) {
  Desk desk({2, 6, 2}, 8, 1);
  desk.begin(0, share({{2}, {0}})); // 0 comes to lie in the middle
  desk.visit(0, {2});
  EXPECT_TRUE(desk.acquire(0, {0, 1}));
  EXPECT_EQ(desk.scheduler.slots().leased(), Weights({0, 1}));
}

TEST(Scheduler, SharesTheRingBetweenLanesInACall) {
  Desk desk(std::vector<std::uint64_t>(16, 1), 8, 1, 2);
  const SequencePtr one = share({{0}, {1}, {2}, {3}, {4}, {5}, {6}, {7}});
  const SequencePtr two = share({{8}, {9}, {10}, {11}, {12}, {13}, {14}, {15}});
  desk.begin(0, one);
  EXPECT_EQ(desk.fetched().size(), 8U) << "alone, all of it";
  desk.begin(1, two);
  for (WeightId i = 0; i < 8; ++i) {
    desk.visit(0, {i});
    desk.visit(1, {8 + i});
  }
  for (int pass = 0; pass < 2; ++pass) {
    desk.begin(0, one);
    desk.begin(1, two);
    const auto misses = desk.scheduler.misses();
    for (WeightId i = 0; i < 8; ++i) {
      desk.visit(0, {i});
      desk.visit(1, {8 + i});
    }
    EXPECT_EQ(desk.scheduler.misses(), misses) << "both find room";
  }
}

TEST(Scheduler, LeavesRoomForALaneThatJoins) {
  Desk desk(std::vector<std::uint64_t>(18, 1), 8, 1, 2);
  const SequencePtr other = share({{12}, {13}, {14}, {15}, {16}, {17}});
  desk.begin(0, each_once(12));
  desk.begin(1, other);
  EXPECT_EQ(desk.fetched().size(), 8U);
  for (WeightId i = 0; i < 4; ++i) {
    desk.visit(0, {i});
  }
  EXPECT_EQ(desk.fetched(), Weights()) << "it has its share";
  desk.begin(1, other);
  EXPECT_EQ(desk.fetched(), Weights({12, 13, 14, 15}));
}

TEST(Scheduler, HoldsBackABatchThatIsNotFull) {
  Desk desk({6, 6, 2, 6}, 16, 4);
  desk.begin(0, each_once(4));
  EXPECT_EQ(desk.batches(), std::vector<Weights>({{0}, {1}})) << "2 waits until it can travel with 3";
  EXPECT_EQ(desk.scheduler.slots().ring().bytes_free(), 4U);
  EXPECT_EQ(desk.scheduler.slots().ring().cursor(), 12U) << "as if it had not been tried";
}

TEST(Scheduler, LanesShareTheCopyOfAWeight) {
  Desk desk({4, 4}, 8, 1, 2);
  const SequencePtr sequence = each_once(2);
  desk.begin(0, sequence);
  desk.begin(1, sequence);
  EXPECT_EQ(desk.fetched(), Weights({0, 1}));
  ASSERT_TRUE(desk.acquire(0, {0}));
  ASSERT_TRUE(desk.acquire(1, {0}));
  EXPECT_TRUE(desk.fetched().empty());
  desk.release(0, {0});
  EXPECT_EQ(desk.scheduler.slots().leased(), Weights({0})) << "the other lane reads it";
}

TEST(Scheduler, ACallThatComesLateTakesNothingFromAPassThatBeganWithAMiss) {
  Desk desk(std::vector<std::uint64_t>(12, 1), 4, 1, 3);
  const SequencePtr sequence = each_once(12);
  const Step all{8, 9, 10, 11};
  desk.begin(2, share({all}));
  ASSERT_TRUE(desk.acquire(2, all));
  desk.begin(0, sequence);
  desk.release(2, all);
  desk.end(2);
  desk.visit(0, {0}); // nothing was ahead
  desk.begin(1, sequence);
  for (WeightId weight = 1; weight < 7; ++weight) {
    EXPECT_FALSE(desk.acquire(1, {0})) << "the next pass is its own";
    desk.visit(0, {weight});
  }
  EXPECT_EQ(desk.scheduler.misses(), 1U);
}

TEST(Scheduler, ExpectingOtherStepsKeepsWhatBothNeed) {
  Desk desk({4, 4, 4}, 12, 1);
  desk.begin(0, share({{0}, {1}}));
  EXPECT_EQ(desk.fetched(), Weights({0, 1}));
  desk.begin(0, share({{0}, {2}}));
  EXPECT_EQ(desk.fetched(), Weights({2}));
}

TEST(Scheduler, FetchesAnewWhatWasAbandoned) {
  Desk desk({4, 4}, 8, 1);
  const SequencePtr sequence = each_once(2);
  desk.begin(0, sequence);
  desk.fetched();
  desk.scheduler.abandon();
  EXPECT_EQ(desk.scheduler.slots().bytes_ahead(), 0U);
  desk.begin(0, sequence);
  EXPECT_EQ(desk.fetched(), Weights({0, 1}));
}

TEST(Scheduler, ToldNothingServesEveryStepAsAMiss) {
  Desk desk({4, 4}, 4, 1);
  desk.begin(0, nullptr);
  desk.visit(0, {0});
  desk.begin(0, share({}));
  desk.visit(0, {1});
  EXPECT_EQ(desk.scheduler.misses(), 2U);
}

} // namespace
} // namespace offload::test
