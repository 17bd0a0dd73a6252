// What steps cost, beside what was measured: stacks of layers that add a product to their input, with all weights on
// the device (docs/benchmarks: the H200 of 2026-11-24 and 2026-11-29, the H100s between).

#include <gtest/gtest.h>

#include <memory>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include <offload/bytes.h>
#include <offload/plan/simulate.h>

#include "weight_tables.h"

namespace offload::test {
namespace {

/// As it was measured: rates from what it predicted on 2026-11-29, the overhead from profiles of the H100's host.
MachineProfile h200() {
  MachineProfile machine;
  machine.name = "H200";
  machine.link_bytes_per_us = 55e3;
  machine.copy_overhead_us = 3.6;
  machine.host_copy_bytes_per_us = 5e4;
  machine.file_bytes_per_us = 2e3;
  machine.memory_bytes_per_us = 2.5e6;
  machine.fp64_flops_per_us = 55e6;
  machine.fp32_flops_per_us = 48.05e6;
  machine.half_flops_per_us = 690e6;
  machine.node_overhead_us = 11.2;
  machine.device_memory_bytes = 140_GiB;
  return machine;
}

/// Products of [rows, width] with weights [width, width], as a lease records them.
LeasedStep product(WeightId weight, double rows, double width, double element_bytes) {
  return {
      .weights = {weight}, .flops = 2 * rows * width * width, .rows = rows, .bytes = 2 * rows * width * element_bytes};
}

/// Milliseconds of a call.
double stack_ms(std::size_t layers, double rows, double width, Arithmetic arithmetic) {
  const double element_bytes = arithmetic == Arithmetic::half ? 2 : 4;
  const auto bytes = static_cast<std::uint64_t>(width * width * element_bytes);
  WeightTable table = *shared_table(std::vector<std::uint64_t>(layers, bytes));
  std::vector<LeasedStep> steps;
  for (std::size_t i = 0; i < layers; ++i) {
    table[i].arithmetic = arithmetic;
    steps.push_back(product(static_cast<WeightId>(i), rows, width, element_bytes));
    steps.back().others = {0, 3 * rows * width * element_bytes, 1}; // the addition
  }
  const Residency residency = all_resident(table);
  const Pass pass = make_pass(std::make_shared<const WeightTable>(std::move(table)), steps, h200());
  return simulate(pass, residency, h200(), {}).time_us / 1e3;
}

struct Stack {
  std::size_t layers;
  double rows;
  double width;
  Arithmetic arithmetic;
  double measured_ms;
};

std::string name_of(const Stack& stack) {
  std::ostringstream name;
  name << stack.layers << " layers, " << stack.rows << " rows, width " << stack.width << ", "
       << (stack.arithmetic == Arithmetic::half ? "bfloat16" : "float32");
  return name.str();
}

TEST(StepCosts, AreWithinAQuarterOfStacksThatWereMeasured) {
  const Stack stacks[] = {
      {512, 1024, 1024, Arithmetic::fp32, 33.9}, {1024, 1024, 1024, Arithmetic::fp32, 68.0},
      {256, 2048, 2048, Arithmetic::fp32, 90.9}, {64, 4096, 4096, Arithmetic::fp32, 176.2},
      {64, 1, 4096, Arithmetic::fp32, 1.58},     {64, 16, 4096, Arithmetic::fp32, 3.50},
      {64, 64, 4096, Arithmetic::fp32, 4.52},    {64, 1, 4096, Arithmetic::half, 1.69},  // from here on, launches are
      {64, 16, 4096, Arithmetic::half, 1.75},    {64, 64, 4096, Arithmetic::half, 1.76}, // all: medians of five runs
  };
  for (const Stack& stack : stacks) {
    const double ms = stack_ms(stack.layers, stack.rows, stack.width, stack.arithmetic);
    EXPECT_GT(ms, 0.75 * stack.measured_ms) << name_of(stack);
    EXPECT_LT(ms, 1.25 * stack.measured_ms) << name_of(stack);
  }
}

/// Rows that share a tile cost the same, and more of them never less.
TEST(StepCosts, RiseWithRows) {
  double before = 0;
  for (const double rows : {1., 2., 32., 33., 64., 100., 1000., 1024., 2048., 100e3}) {
    const double ms = stack_ms(8, rows, 4096, Arithmetic::fp32);
    EXPECT_GE(ms, before) << rows;
    before = ms;
  }
}

/// The host launches ahead of a GPU, and has to compute itself where it is the device.
TEST(StepCosts, HaveLaunchesBesideThemOnAGpuAndBetweenThemOnAHost) {
  const WeightTablePtr weights = shared_table({4_MiB});
  LeasedStep step = product(0, 1024, 1024, 4);
  step.others = {0, 0, 3};
  MachineProfile machine = h200();
  const double gpu_us = make_pass(weights, {step}, machine).steps[0].compute_us;
  EXPECT_EQ(make_pass(weights, {step}, machine).steps[0].launch_us, 4 * machine.node_overhead_us);
  step.others.launches = 9;
  EXPECT_EQ(make_pass(weights, {step}, machine).steps[0].compute_us, gpu_us);
  EXPECT_NEAR(simulate(make_pass(weights, {step}, machine), all_resident(*weights), machine, {}).time_us,
              10 * machine.node_overhead_us, 1e-6);
  machine.device_memory_bytes = 0;
  const double ten_us = make_pass(weights, {step}, machine).steps[0].compute_us;
  step.others.launches = 0;
  EXPECT_NEAR(ten_us - make_pass(weights, {step}, machine).steps[0].compute_us, 9 * machine.node_overhead_us, 1e-6);
}

/// A table that stays in host memory is no traffic; what follows the lookup is.
TEST(StepCosts, HaveNoTableThatIsReadInPlace) {
  const WeightTablePtr weights = shared_table({1_GiB});
  const double bytes = 25e6;
  const LeasedStep step{.weights = {0}, .rows_only = true, .others = {0, bytes, 1}};
  const Pass pass = make_pass(weights, {step}, h200());
  EXPECT_TRUE(pass.steps[0].weights.empty());
  EXPECT_DOUBLE_EQ(pass.steps[0].compute_us, bytes / h200().memory_bytes_per_us);
}

} // namespace
} // namespace offload::test
