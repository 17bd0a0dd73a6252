#include <gtest/gtest.h>

#include <offload/bytes.h>
#include <offload/plan/device_budget.h>

namespace offload::test {
namespace {

DeviceBudget budget_of(std::uint64_t vram) {
  DeviceBudget budget;
  budget.vram = vram;
  budget.fixed = 10_MiB;
  budget.least_ring = 5_MiB; // of which 6 are taken
  budget.call = 33_MiB;      // and of these 34
  budget.unit = 2_MiB;
  return budget;
}

TEST(DeviceBudget, IsAtLeastWhatStaysTheRingAndOneCall) {
  EXPECT_EQ(budget_of(1_GiB).minimum(), 50_MiB);
  DeviceBudget with_state = budget_of(1_GiB);
  with_state.state = 4_MiB;
  EXPECT_EQ(with_state.minimum(), 54_MiB);
  DeviceBudget nothing;
  EXPECT_EQ(nothing.minimum(), 1) << "0 would be no budget";
}

TEST(DeviceBudget, LeavesTheSmallestRingAtItsMinimum) {
  const DeviceBudget budget = budget_of(budget_of(0).minimum());
  EXPECT_EQ(budget.reserve(), 34_MiB);
  EXPECT_EQ(budget.capacity(), 6_MiB);
  EXPECT_EQ(budget.room(6_MiB), 34_MiB);
}

TEST(DeviceBudget, KeepsNoMoreThanOneCallWhereAllAreAlikeAndAlone) {
  const DeviceBudget budget = budget_of(1_GiB);
  EXPECT_EQ(budget.reserve(), 34_MiB);
  EXPECT_EQ(budget.capacity(), 980_MiB);
}

TEST(DeviceBudget, KeepsForEachLaneAndForLargerCallsFromHalfOfWhatIsLeft) {
  DeviceBudget budget = budget_of(1_GiB);
  budget.lanes = 4;
  EXPECT_EQ(budget.reserve(), 4 * 34_MiB);
  budget.calls_differ = true;
  EXPECT_EQ(budget.reserve(), 4 * 34_MiB + 34_MiB);
  budget.vram = 10_MiB + 6_MiB + 4 * 34_MiB + 20_MiB;
  EXPECT_EQ(budget.reserve(), 4 * 34_MiB + 10_MiB);
  EXPECT_EQ(budget.capacity(), 6_MiB + 10_MiB);
}

TEST(DeviceBudget, KeepsForUsualCallsBesideTheLargest) {
  DeviceBudget budget = budget_of(1_GiB);
  budget.lanes = 4;
  budget.usual_call = 9_MiB; // of which 10 are taken
  EXPECT_EQ(budget.reserve(), 34_MiB + 3 * 10_MiB);
  EXPECT_EQ(budget.least_reserve(), 34_MiB) << "one call is the least";
  budget.usual_call = 50_MiB;
  EXPECT_EQ(budget.reserve(), 4 * 34_MiB) << "none takes more than the largest";
}

TEST(DeviceBudget, HasRoomForNoMoreLanesThanBesideTheSmallestRing) {
  DeviceBudget budget = budget_of(10_MiB + 6_MiB + 3 * 34_MiB);
  budget.lanes = 3;
  EXPECT_TRUE(budget.has_room_for_lanes());
  budget.lanes = 4;
  EXPECT_FALSE(budget.has_room_for_lanes());
  EXPECT_EQ(budget.capacity(), 6_MiB);
}

TEST(DeviceBudget, GivesCallsWhatWeightsDoNotTake) {
  const DeviceBudget budget = budget_of(101_MiB);
  EXPECT_EQ(budget.room(40_MiB), 50_MiB) << "in whole units";
  EXPECT_EQ(budget.room(200_MiB), 0);
}

TEST(DeviceBudget, TakesNothingForCallsOnAHost) {
  DeviceBudget budget;
  budget.vram = 10_MiB;
  budget.fixed = 1_MiB;
  budget.least_ring = 1_MiB;
  budget.lanes = 4;
  EXPECT_EQ(budget.minimum(), 2_MiB);
  EXPECT_EQ(budget.reserve(), 0);
  EXPECT_EQ(budget.capacity(), 9_MiB);
}

TEST(DeviceBudget, IsNoLessThanNothingBelowItsMinimum) {
  const DeviceBudget budget = budget_of(4_MiB);
  EXPECT_EQ(budget.reserve(), 0);
  EXPECT_EQ(budget.capacity(), 0);
  EXPECT_EQ(budget.room(0), 0);
}

} // namespace
} // namespace offload::test
