#include <gtest/gtest.h>
#include <offload/error.h>
#include <offload/feed/fill_progress.h>

namespace offload {
namespace {

TEST(FillProgress, OfNothingIsComplete) {
  const FillProgress progress(0);
  EXPECT_TRUE(progress.all_there());
  EXPECT_TRUE(progress.all_reported());
  EXPECT_FALSE(progress.has_next());
}

TEST(FillProgress, IsThereAsFarAsTheFirstPieceThatIsMissing) {
  FillProgress progress(3);
  for (std::size_t piece = 0; piece < 3; ++piece) {
    EXPECT_EQ(progress.begin_next(), piece);
  }
  EXPECT_FALSE(progress.has_next());
  progress.end_there(1, 0);
  EXPECT_EQ(progress.first_missing(), 0U);
  progress.end_there(0, 0);
  EXPECT_EQ(progress.first_missing(), 2U);
  EXPECT_FALSE(progress.all_there());
  progress.end_there(2, 0);
  EXPECT_TRUE(progress.all_there());
}

TEST(FillProgress, ReadsWhatFailedBeforeWhatIsNew) {
  FillProgress progress(3);
  EXPECT_EQ(progress.begin_next(), 0U);
  EXPECT_EQ(progress.begin_next(), 1U);
  EXPECT_EQ(progress.in_flight(), 2);
  progress.end_failed(0);
  EXPECT_EQ(progress.in_flight(), 1);
  EXPECT_EQ(progress.begin_next(), 0U);
  EXPECT_EQ(progress.begin_next(), 2U);
  progress.end_failed(2);
  EXPECT_TRUE(progress.has_next());
  EXPECT_EQ(progress.begin_next(), 2U);
  EXPECT_FALSE(progress.has_next());
}

TEST(FillProgress, TellsBytesOnceAndByOneAtATime) {
  FillProgress progress(3);
  for (std::size_t piece = 0; piece < 3; ++piece) {
    progress.begin_next();
  }
  EXPECT_FALSE(progress.may_report());
  progress.end_there(0, 5);
  progress.end_there(2, 6);
  EXPECT_TRUE(progress.may_report());
  EXPECT_EQ(progress.begin_report(), 11U);
  progress.end_there(1, 7);
  EXPECT_FALSE(progress.may_report());
  EXPECT_FALSE(progress.all_reported());
  progress.end_report();
  EXPECT_TRUE(progress.may_report());
  EXPECT_EQ(progress.begin_report(), 7U);
  EXPECT_FALSE(progress.all_reported());
  progress.end_report();
  EXPECT_TRUE(progress.all_reported());
}

TEST(FillFailure, KeepsTheFirstUntilItIsForgotten) {
  FillFailure failure;
  EXPECT_FALSE(failure.any());
  EXPECT_TRUE(failure.record(std::make_exception_ptr(Error("first"))));
  EXPECT_FALSE(failure.record(std::make_exception_ptr(ArchiveError("second"))));
  EXPECT_TRUE(failure.any());
  EXPECT_FALSE(failure.reported());
  EXPECT_THROW(failure.report(), Error);
  EXPECT_TRUE(failure.reported());
  EXPECT_EQ(failure.clear(), nullptr) << "it has been told";
  EXPECT_FALSE(failure.any());
}

TEST(FillFailure, GivesBackWhatNobodyHasBeenTold) {
  FillFailure failure;
  const auto first = std::make_exception_ptr(Error("first"));
  failure.record(first);
  EXPECT_EQ(failure.clear(), first);
  EXPECT_EQ(failure.clear(), nullptr);
  EXPECT_TRUE(failure.record(std::make_exception_ptr(Error("another"))));
  EXPECT_FALSE(failure.reported());
}

} // namespace
} // namespace offload
