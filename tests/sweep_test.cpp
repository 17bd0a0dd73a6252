#include <gtest/gtest.h>

#include <algorithm>

#include <offload/bytes.h>
#include <offload/plan/sweep.h>

namespace offload::test {
namespace {

/// As long as the link takes for what has no room, but at least so long as the device computes.
SweepPoint bound_by_link_or_device(std::uint64_t vram, double compute_us) {
  const std::uint64_t streamed = 1_GiB - vram;
  const double link_us = static_cast<double>(streamed) / 50e3;
  return {vram, std::max(link_us, compute_us), streamed, link_us > compute_us ? Bound::link : Bound::compute};
}

TEST(Sweep, GoesFromTheSmallestBudgetToTheLargest) {
  int asked = 0;
  const auto points = sweep_between(100_MiB + 3, 1_GiB, [&](std::uint64_t vram) {
    ++asked;
    return bound_by_link_or_device(vram, 0);
  });
  EXPECT_EQ(points.front().vram, 100_MiB + 3);
  EXPECT_EQ(points.back().vram, 1_GiB);
  EXPECT_EQ(points.size(), 40U);
  EXPECT_EQ(asked, 40);
  EXPECT_TRUE(std::is_sorted(points.begin(), points.end(),
                             [](const SweepPoint& a, const SweepPoint& b) { return a.vram < b.vram; }));
  for (std::size_t i = 1; i + 1 < points.size(); ++i) {
    EXPECT_EQ(points[i].vram % 512_KiB, 0U) << "budgets are round numbers";
  }
}

TEST(Sweep, LooksCloserWhereTheTimeFalls) {
  const auto points = sweep_between(
      0, 1_GiB, [&](std::uint64_t vram) { return SweepPoint{vram, vram < 300_MiB ? 10.0 : 1.0, 0, Bound::link}; });
  const auto after = std::find_if(points.begin(), points.end(), [](const auto& point) { return point.time_us < 10; });
  EXPECT_LE(after->vram - std::prev(after)->vram, 2_MiB);
}

TEST(Sweep, OfOneBudgetIsOnePoint) {
  EXPECT_EQ(sweep_between(5, 5, [](std::uint64_t vram) { return SweepPoint{vram}; }).size(), 1U);
  EXPECT_EQ(sweep_between(5, 4, [](std::uint64_t vram) { return SweepPoint{vram}; }).size(), 1U);
  EXPECT_EQ(sweep_between(5, 7, [](std::uint64_t vram) { return SweepPoint{vram}; }).size(), 3U);
}

TEST(Sweep, ItsKneeIsWhereMoreMemoryBeginsToSaveLess) {
  const double compute_us = static_cast<double>(1_GiB - 700_MiB) / 50e3; // from there on the device takes longer
  const auto points =
      sweep_between(0, 1_GiB, [&](std::uint64_t vram) { return bound_by_link_or_device(vram, compute_us); });
  const auto knee = knee_of(points);
  ASSERT_TRUE(knee);
  EXPECT_NEAR(static_cast<double>(points[*knee].vram), 700_MiB, 30_MiB);
}

TEST(Sweep, AStraightLineHasNoKnee) {
  EXPECT_FALSE(knee_of(sweep_between(0, 1_GiB, [](std::uint64_t vram) { return bound_by_link_or_device(vram, 0); })));
  EXPECT_FALSE(knee_of({}));
  EXPECT_FALSE(knee_of({{1, 5.0}, {2, 5.0}}));
  EXPECT_FALSE(knee_of({{1, 5.0}}));
}

TEST(Sweep, FitsTheSmallestBudget) {
  const auto point_at = [](std::uint64_t vram) { return bound_by_link_or_device(vram, 0); };
  auto points = sweep_between(0, 1_GiB, point_at);
  const double wanted_us = static_cast<double>(1_GiB - 333_MiB) / 50e3;
  const auto found = fit_between(points, wanted_us, point_at);
  ASSERT_TRUE(found);
  EXPECT_LE(found->time_us, wanted_us);
  EXPECT_NEAR(static_cast<double>(found->vram), 333_MiB, 256_KiB);
  EXPECT_TRUE(std::is_sorted(points.begin(), points.end(),
                             [](const SweepPoint& a, const SweepPoint& b) { return a.vram < b.vram; }));
  EXPECT_FALSE(fit_between(points, -1, point_at));
  EXPECT_EQ(fit_between(points, 1e9, point_at)->vram, 0U) << "the smallest is fast enough";
}

TEST(Sweep, FitsWhereALargerBudgetIsSlower) {
  const auto point_at = [](std::uint64_t vram) {
    return SweepPoint{vram, vram < 200_MiB || (vram > 400_MiB && vram < 900_MiB) ? 10.0 : 1.0, 0, Bound::link};
  };
  auto points = sweep_between(0, 1_GiB, point_at);
  EXPECT_NEAR(static_cast<double>(fit_between(points, 5, point_at)->vram), 200_MiB, 256_KiB);
}

TEST(Sweep, NamesWhatBinds) {
  EXPECT_EQ(bound_of({100, 0, 0, 1, 99, 50}), Bound::link);
  EXPECT_EQ(bound_of({100, 0, 0, 1, 99, 96}), Bound::compute);
  EXPECT_EQ(bound_of({100, 0, 0, 1, 80, 80}), Bound::neither);
}

} // namespace
} // namespace offload::test
