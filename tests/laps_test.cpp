// What calls have taken, for the steps of a plan.

#include <gtest/gtest.h>

#include <vector>

#include <offload/bytes.h>
#include <offload/plan/pass.h>
#include <offload/plan/simulate.h>

#include "weight_tables.h"

namespace offload::test {
namespace {

MachineProfile machine_of_laps() {
  MachineProfile machine;
  machine.device_memory_bytes = 1_GiB;
  machine.link_bytes_per_us = 1000;
  machine.fp32_flops_per_us = 1e6;
  machine.memory_bytes_per_us = 1e6;
  machine.node_overhead_us = 10;
  return machine;
}

class Laps : public testing::Test {
 protected:
  static LeasedStep product(WeightId weight, double rows) {
    return {.weights = {weight}, .flops = rows * 1e6, .rows = rows, .bytes = 0};
  }

  bool record(const Residency& residency, const std::vector<Lap>& laps, bool host_waited = false) {
    return record_laps(steps_, weights_, residency, {laps, host_waited}, machine_);
  }

  std::vector<PlanStep> costs() const { return make_pass(weights_, steps_, machine_).steps; }

  const MachineProfile machine_ = machine_of_laps();
  const WeightTablePtr weights_ = shared_table({1_MiB, 1_MiB, 1_MiB, 1_MiB});
  const Residency nothing_{{0, 0, 0, 0}, 2_MiB};
  std::vector<LeasedStep> steps_ = {product(0, 64), product(1, 64), product(2, 256), product(3, 64)};
};

TEST_F(Laps, AreThoseOfStepsWhereAllStream) {
  ASSERT_TRUE(record(nothing_, {{5, 50}, {10, 1}, {20, 2}, {30, 3}, {40, 400}}));
  ASSERT_EQ(steps_.size(), 5U) << "what comes before the first is a step of its own";
  const std::vector<double> device_us = {0, 10, 20, 30, 40}; // the first was launches
  const std::vector<double> host_us = {50, 1, 2, 3, 400};
  for (std::size_t i = 0; i < steps_.size(); ++i) {
    EXPECT_DOUBLE_EQ(costs()[i].compute_us, device_us[i]);
    EXPECT_DOUBLE_EQ(costs()[i].launch_us, host_us[i]);
  }
  EXPECT_NEAR(simulate(make_pass(weights_, steps_, machine_), all_resident(*weights_), machine_).time_us,
              50 + 1 + 2 + 3 + 400, 1e-6)
      << "the host is ahead where it can be";
}

/// What is resident is not leased, and nobody sees where it begins.
TEST_F(Laps, AreSharedByWhatFollowsOfWhatIsResident) {
  const std::vector<PlanStep> before = costs();
  const Residency some{{0, 1_MiB, 1_MiB, 0}, 1_MiB};
  ASSERT_TRUE(record(some, {{1, 1}, {1000, 100}, {7, 7}}));
  const double sum = before[0].compute_us + before[1].compute_us + before[2].compute_us;
  EXPECT_NEAR(costs()[1].compute_us, 1000 * before[0].compute_us / sum, 1e-9);
  EXPECT_NEAR(costs()[3].compute_us, 1000 * before[2].compute_us / sum, 1e-9);
  EXPECT_GT(costs()[3].compute_us, 2 * costs()[2].compute_us);
  EXPECT_NEAR(costs()[1].launch_us, 100.0 / 3, 1e-9);
  EXPECT_DOUBLE_EQ(costs()[4].compute_us, 7);
}

TEST_F(Laps, AreOneWhereNothingStreams) {
  ASSERT_TRUE(record(all_resident(*weights_), {{900, 90}}));
  double sum = 0;
  for (const PlanStep& step : costs()) {
    sum += step.compute_us;
  }
  EXPECT_NEAR(sum, 900, 1e-9);
  EXPECT_NEAR(simulate(make_pass(weights_, steps_, machine_), all_resident(*weights_), machine_).time_us, 900, 1e-6);
}

TEST_F(Laps, OfSeveralCallsAreTheShortest) {
  ASSERT_TRUE(record(nothing_, {{5, 5}, {10, 1}, {20, 2}, {30, 3}, {40, 4}}));
  ASSERT_TRUE(record(nothing_, {{6, 4}, {8, 2}, {25, 1}, {30, 3}, {44, 5}}));
  EXPECT_EQ(steps_.size(), 5U);
  const std::vector<Lap> expected = {{0, 4}, {8, 1}, {20, 1}, {30, 3}, {40, 4}};
  for (std::size_t i = 0; i < expected.size(); ++i) {
    EXPECT_DOUBLE_EQ(steps_[i].took->device_us, expected[i].device_us);
    EXPECT_DOUBLE_EQ(steps_[i].took->host_us, expected[i].host_us);
  }
  ASSERT_TRUE(record(all_resident(*weights_), {{49, 40}})) << "where something else is placed";
  EXPECT_DOUBLE_EQ(steps_[4].took->device_us, 20) << "as they shared it before";
  EXPECT_DOUBLE_EQ(steps_[4].took->host_us, 4) << "no longer than it was";
}

TEST_F(Laps, OfAnotherCallAreNone) {
  EXPECT_FALSE(record(nothing_, {{5, 5}, {10, 1}, {20, 2}, {30, 3}}));
  EXPECT_FALSE(record(all_resident(*weights_), {}));
  EXPECT_EQ(steps_.size(), 4U);
  EXPECT_FALSE(steps_[0].took);
}

/// As where it is so far ahead that it waits for the device.
TEST_F(Laps, SayNothingOfAHostThatWaited) {
  const double launch_us = costs()[0].launch_us;
  ASSERT_TRUE(record(nothing_, {{5, 500}, {10, 500}, {20, 500}, {30, 500}, {40, 500}}, /*host_waited=*/true));
  EXPECT_DOUBLE_EQ(costs()[1].compute_us, 10);
  EXPECT_DOUBLE_EQ(costs()[1].launch_us, launch_us) << "as before";
  ASSERT_TRUE(record(nothing_, {{5, 1}, {10, 2}, {20, 3}, {30, 4}, {40, 4}}));
  ASSERT_TRUE(record(nothing_, {{5, 500}, {10, 500}, {20, 500}, {30, 500}, {40, 500}}, /*host_waited=*/true));
  EXPECT_DOUBLE_EQ(costs()[1].launch_us, 2);
}

TEST_F(Laps, AreNoWorkWhereTheDeviceWaitsForLaunches) {
  const double work_us = costs()[3].compute_us;
  ASSERT_TRUE(record(nothing_, {{5, 5}, {10, 1}, {20, 2}, {30, 3}, {4000, 4000}}));
  EXPECT_DOUBLE_EQ(costs()[4].compute_us, work_us);
  EXPECT_DOUBLE_EQ(costs()[4].launch_us, 4000);
}

TEST_F(Laps, GrowWithRowsAsCostsDo) {
  ASSERT_TRUE(record(nothing_, {{5, 1}, {10, 1}, {20, 2}, {300, 3}, {40, 4}}));
  const std::vector<LeasedStep> twice = with_twice_the_rows(*weights_, steps_, machine_);
  EXPECT_EQ(twice[3].rows, 512);
  EXPECT_GT(twice[3].took->device_us, 1.8 * 300) << "256 rows are work";
  EXPECT_EQ(twice[3].took->host_us, 3);
  EXPECT_EQ(twice[0].took->device_us, 5) << "nobody knows of what";
}

} // namespace
} // namespace offload::test
