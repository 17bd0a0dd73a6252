#include <gtest/gtest.h>

#include <offload/runtime/demand.h>

namespace offload::test {
namespace {

/// Records so many calls. How often a plan is to be made.
int record(Demand& demand, int calls, int callers) {
  int changes = 0;
  for (int i = 0; i < calls; ++i) {
    changes += demand.record(callers) ? 1 : 0;
  }
  return changes;
}

TEST(Demand, RisesOnceSomeCallsHaveFoundMore) {
  Demand demand(1);
  EXPECT_EQ(record(demand, 7, 4), 0);
  EXPECT_EQ(record(demand, 1, 2), 1);
  EXPECT_EQ(demand.callers(), 4) << "the most of them";
  EXPECT_EQ(record(demand, 1000, 4), 0);
}

TEST(Demand, IsNotRaisedByAFew) {
  Demand demand(1);
  EXPECT_EQ(record(demand, 3, 8) + record(demand, 253, 1), 0);
  EXPECT_EQ(record(demand, 7, 8), 0) << "of the last calls";
  EXPECT_EQ(demand.callers(), 1);
}

TEST(Demand, FallsWhenManyHaveFoundNoMoreThanHalf) {
  Demand demand(8);
  EXPECT_EQ(record(demand, 2000, 5), 0);
  EXPECT_EQ(demand.callers(), 8);
  EXPECT_EQ(record(demand, 511, 3), 1) << "once those with five are long past";
  EXPECT_EQ(demand.callers(), 3);
  EXPECT_EQ(record(demand, 512, 1), 1);
  EXPECT_EQ(demand.callers(), 1);
}

} // namespace
} // namespace offload::test
