#include <gtest/gtest.h>

#include <offload/runtime/activations.h>

namespace offload::test {
namespace {

TEST(Activations, ExpectsWhatAShapeTookBefore) {
  Activations seen;
  EXPECT_TRUE(seen.empty());
  seen.record(1, 100);
  seen.record(2, 300);
  EXPECT_EQ(seen.expected(1), 100);
  EXPECT_EQ(seen.expected(2), 300);
  EXPECT_EQ(seen.largest(), 300);
  EXPECT_TRUE(seen.differ());
}

TEST(Activations, ExpectsOfANewShapeAsMuchAsTheLargestTook) {
  Activations seen;
  EXPECT_EQ(seen.expected(7), 0);
  seen.record(1, 100);
  seen.record(2, 300);
  EXPECT_EQ(seen.expected(7), 300);
  EXPECT_FALSE(seen.knows(7));
}

TEST(Activations, DoNotDifferWhereAllTakeTheSame) {
  Activations seen;
  for (std::size_t shape = 0; shape < 5; ++shape) {
    seen.record(shape, 100);
  }
  EXPECT_FALSE(seen.differ());
}

TEST(Activations, KnowAShapeOnceItTookNoMoreThanBefore) {
  Activations seen;
  seen.record_at_least(1, 100);
  EXPECT_FALSE(seen.knows(1));
  EXPECT_EQ(seen.largest(), 100);
  seen.record(1, 500);
  EXPECT_FALSE(seen.knows(1)) << "it took more than ever";
  seen.record(1, 400);
  EXPECT_TRUE(seen.knows(1));
  EXPECT_EQ(seen.expected(1), 500);
}

TEST(Activations, KeepWhatAStoppedCallWantedUntilOneHasEnded) {
  Activations seen;
  seen.record(1, 100);
  seen.record_at_least(2, 600); // of memory that was in pieces
  EXPECT_EQ(seen.largest(), 600);
  seen.record(2, 500);
  EXPECT_EQ(seen.largest(), 500);
  EXPECT_EQ(seen.expected(2), 500);
}

TEST(Activations, DropWhatWasNotSeenAgain) {
  Activations seen;
  seen.record(1, 1000);
  seen.record(2, 900);
  seen.pin(2);
  for (std::uint64_t call = 0; call < 2 * Activations::kPeriod; ++call) {
    if (call < Activations::kPeriod - 2) {
      ASSERT_EQ(seen.largest(), 1000);
    }
    seen.record(3, 10);
  }
  EXPECT_EQ(seen.largest(), 900) << "it was named in advance";
  EXPECT_FALSE(seen.knows(1));
  EXPECT_TRUE(seen.knows(2));
}

TEST(Activations, DropWhatAShapeTookOnce) {
  Activations seen;
  seen.record(1, 1000); // it depends on values
  for (std::uint64_t call = 0; call < 2 * Activations::kPeriod; ++call) {
    seen.record(1, 10);
  }
  EXPECT_EQ(seen.largest(), 10);
}

TEST(Activations, KeepNothingOfACallThatWasRefused) {
  Activations seen;
  seen.record(1, 100);
  seen.record_at_least(2, 10'000);
  seen.remove(2);
  EXPECT_EQ(seen.largest(), 100);
  EXPECT_FALSE(seen.differ());
}

} // namespace
} // namespace offload::test
