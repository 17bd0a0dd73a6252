// What is known of a module before it is placed. Linked twice: for the host, and for the first GPU.

#include <algorithm>

#include <offload/preview.h>

#include "modules.h"

namespace offload::test {
namespace {

bool by_budget(const SweepPoint& a, const SweepPoint& b) { return a.vram < b.vram; }

/// Without a budget, and of one call.
Options options_for_previews() {
  Options options = options_for(0);
  options.vram_budget.reset();
  options.example_calls = {{"forward", {rows()}}};
  return options;
}

TEST(Preview, SweepsFromTheSmallestBudgetToAllResident) {
  const torch::jit::Module module = make(24, chain(24));
  const Options options = options_for_previews();
  const Sweep swept = sweep(module, options);
  const Placement placement = preview(module, options);
  ASSERT_GE(swept.points.size(), 2U);
  EXPECT_TRUE(std::is_sorted(swept.points.begin(), swept.points.end(), by_budget));
  EXPECT_EQ(swept.points.front().vram, placement.budget.minimum);
  EXPECT_GT(swept.points.front().streamed_bytes, 0U);
  EXPECT_EQ(swept.points.back().streamed_bytes, 0U);
  EXPECT_EQ(swept.device, placement.device);
  EXPECT_EQ(swept.machine, placement.machine);
}

TEST(Preview, SweepsUpToABudgetThatIsGiven) {
  const torch::jit::Module module = make(24, chain(24));
  Options options = options_for_previews();
  const std::uint64_t least = sweep(module, options).points.front().vram;
  options.vram_budget = least + 4 * kWeightBytes;
  EXPECT_EQ(sweep(module, options).points.back().vram, *options.vram_budget);
}

TEST(Preview, APointOfASweepIsWhatAPlacementPredicts) {
  const torch::jit::Module module = make(8, chain(8));
  const MachineProfile machine{"a machine", 1e4, 5, 1e4, 1e3, 1e6, 1e5, 1e5, 1e5, 10};
  Options options = options_for_previews();
  const std::uint64_t least = sweep(module, options, {}, machine).points.front().vram;
  const std::vector<std::uint64_t> budgets = {least + 4 * kWeightBytes, least};
  const Sweep swept = sweep(module, options, budgets, machine);
  ASSERT_EQ(swept.points.size(), 2U);
  EXPECT_EQ(swept.points[0].vram, least) << "in order";
  for (const SweepPoint& point : swept.points) {
    options.vram_budget = point.vram;
    const Prediction predicted = preview(module, options, machine).predicted;
    EXPECT_EQ(point.streamed_bytes, predicted.streamed_bytes);
    EXPECT_NEAR(timeline(module, options, machine).busy_us(Timeline::Lane::compute) +
                    timeline(module, options, machine).busy_us(Timeline::Lane::stall),
                predicted.time_us, 0.2 * predicted.time_us);
    EXPECT_NEAR(point.time_us, predicted.time_us, 1e-3);
  }
  EXPECT_THROW(sweep(module, options_for_previews(), {1}, machine), BudgetError);
}

TEST(Preview, FitsABudgetToATime) {
  const torch::jit::Module module = make(24, chain(24));
  const MachineProfile machine{"a machine", 1e3, 5, 1e3, 1e3, 1e6, 1e5, 1e5, 1e5, 10}; // where the link takes longest
  const Options options = options_for_previews();
  const Sweep swept = sweep(module, options, {}, machine);
  const double wanted_us = (swept.points.front().time_us + swept.points.back().time_us) / 2;
  const Fit found = fit(module, options, wanted_us, machine);
  ASSERT_TRUE(found.smallest);
  EXPECT_LE(found.smallest->time_us, wanted_us);
  EXPECT_GT(found.smallest->vram, swept.points.front().vram);
  EXPECT_LT(found.smallest->vram, swept.points.back().vram);
  EXPECT_GE(found.tried.points.size(), swept.points.size());
  EXPECT_FALSE(fit(module, options, 1e-3, machine).smallest);
}

/// As `preview` does, from which they come.
TEST(Preview, LeavesTheModuleAsItWas) {
  const torch::jit::Module module = make(4, chain(4));
  const at::Tensor before = module.attr("w0").toTensor().clone();
  sweep(module, options_for_previews());
  EXPECT_TRUE(module.attr("w0").toTensor().equal(before));
}

} // namespace
} // namespace offload::test
