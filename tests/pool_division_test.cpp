#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <random>

#include <offload/plan/pool_division.h>

#include "weight_tables.h"

namespace offload::test {
namespace {

constexpr std::uint64_t kPoolUnit = 1 << 20;

MachineProfile pool_machine() {
  MachineProfile machine;
  machine.name = "test";
  machine.link_bytes_per_us = 50e3;
  machine.copy_overhead_us = 5;
  machine.host_copy_bytes_per_us = 80e3;
  machine.file_bytes_per_us = 2e3;
  machine.memory_bytes_per_us = 3e6;
  machine.fp64_flops_per_us = 50e6;
  machine.fp32_flops_per_us = 50e6;
  machine.half_flops_per_us = 500e6;
  machine.node_overhead_us = 5;
  return machine;
}

/// A weight of 32 units in each step.
Pass uniform_pass(std::size_t steps, double compute_us) {
  Pass pass;
  pass.weights = shared_table(std::vector<std::uint64_t>(steps, 32 * kPoolUnit));
  for (WeightId weight = 0; weight < steps; ++weight) {
    pass.steps.push_back({{weight}, compute_us});
  }
  return pass;
}

using CurvePtr = std::shared_ptr<const ResidentCurve>;

CurvePtr curve_of(std::size_t steps, double compute_us) {
  return std::make_shared<const ResidentCurve>(
      resident_curve(uniform_pass(steps, compute_us), 96 * kPoolUnit, pool_machine()));
}

TEST(PoolDivision, ACurveFallsFromStreamingAllToStreamingNothing) {
  const CurvePtr curve = curve_of(16, 10);
  ASSERT_GE(curve->points.size(), 2U);
  EXPECT_EQ(curve->points.front().bytes, 0U);
  EXPECT_EQ(curve->points.back().bytes, std::uint64_t{16} * 32 * kPoolUnit);
  EXPECT_NEAR(curve->points.back().time_us, 160, 20);
  for (std::size_t i = 1; i < curve->points.size(); ++i) {
    EXPECT_LT(curve->points[i].time_us, curve->points[i - 1].time_us);
  }
}

TEST(PoolDivision, BytesThatSaveNoTimeComeLast) {
  const CurvePtr compute = curve_of(16, 5000); // the device is the limit
  const CurvePtr link = curve_of(16, 10);
  const std::uint64_t all = link->points.back().bytes;
  EXPECT_LT(divide_resident({{compute, 10, all}, {link, 1, all}}, all + all / 2)[0], all / 2 + 1);
  EXPECT_EQ(divide_resident({{compute, 10, all}, {link, 1, all}}, all + all / 2)[1], all);
  EXPECT_EQ(divide_resident({{compute, 1, all}}, 2 * all)[0], all) << "but there is room for them";
}

/// Others would use the link.
TEST(PoolDivision, WhoIsCalledMuchMoreComesFirstThoughItWaitsForNothing) {
  const CurvePtr compute = curve_of(16, 5000);
  const CurvePtr link = curve_of(16, 10);
  const std::uint64_t all = link->points.back().bytes;
  EXPECT_EQ(divide_resident({{compute, 1000, all}, {link, 1, all}}, all)[0], all);
}

TEST(PoolDivision, WhoIsCalledMostComesFirst) {
  const CurvePtr curve = curve_of(16, 10);
  const std::uint64_t all = curve->points.back().bytes;
  const auto bytes = divide_resident({{curve, 1, all}, {curve, 9, all}, {curve, 3, all}}, all + all / 2);
  EXPECT_EQ(bytes, (std::vector<std::uint64_t>{0, all, all / 2}));
  EXPECT_EQ(divide_resident({{curve, 1, all}, {curve, 9, all / 4}}, all),
            (std::vector<std::uint64_t>{all / 4 * 3, all / 4}))
      << "no more than it may have";
  EXPECT_EQ(divide_resident({{curve, 0, all}}, all), std::vector<std::uint64_t>{0}) << "nobody calls it";
}

/// Against all divisions in steps of an eighth.
TEST(PoolDivision, IsTheBestThereIs) {
  std::mt19937 random(1);
  const auto from = [&](std::uint64_t low, std::uint64_t high) { return low + random() % (high - low + 1); };
  for (int round = 0; round < 20; ++round) {
    std::vector<CurvePtr> curves;
    for (int i = 0; i < 3; ++i) {
      curves.push_back(curve_of(from(2, 12), static_cast<double>(from(1, 1500))));
    }
    std::vector<Claimant> claimants;
    std::uint64_t all = 0;
    for (const CurvePtr& curve : curves) {
      claimants.push_back({curve, static_cast<double>(from(1, 20)), curve->points.back().bytes});
      all += curve->points.back().bytes;
    }
    const std::uint64_t capacity = all * from(1, 9) / 10;
    const auto chosen = divide_resident(claimants, capacity);
    EXPECT_LE(std::accumulate(chosen.begin(), chosen.end(), std::uint64_t{0}), capacity);
    double best = load_of(claimants, {0, 0, 0});
    for (int a = 0; a <= 8; ++a) {
      for (int b = 0; b <= 8; ++b) {
        const std::uint64_t of_a = curves[0]->points.back().bytes * static_cast<std::uint64_t>(a) / 8;
        const std::uint64_t of_b = curves[1]->points.back().bytes * static_cast<std::uint64_t>(b) / 8;
        if (of_a + of_b <= capacity) {
          best = std::min(best, load_of(claimants, {of_a, of_b, capacity - of_a - of_b}));
        }
      }
    }
    EXPECT_LE(load_of(claimants, chosen), best * (1 + 1e-9));
  }
}

} // namespace
} // namespace offload::test
