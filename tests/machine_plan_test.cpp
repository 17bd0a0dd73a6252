// Plans for machines that are not here. Linked twice: for the host, and for the first GPU.

#include <ATen/ops/equal.h>
#include <offload/preview.h>

#include "modules.h"

namespace offload::test {
namespace {

constexpr int kCount = 8; // of weights, on top of each other

torch::jit::Module eight_weights() { return make(kCount, chain(kCount)); }

/// A plan with the smallest budget. It is given out in units of two of them, so one may stay.
Placement smallest_plan(const std::string& machine, const std::vector<ExampleCall>& calls = {}) {
  const torch::jit::Module module = eight_weights();
  Options options = options_for(1_GiB);
  options.example_calls = calls;
  options.vram_budget = preview(module, options, shipped_profile(machine)).budget.minimum;
  return preview(module, options, shipped_profile(machine));
}

TEST(MachinePlan, HasByDefaultTheMemoryOfThatMachine) {
  Options options = options_for(0);
  options.vram_budget.reset();
  const MachineProfile machine = shipped_profile("rtx4090");
  const Placement plan = preview(eight_weights(), options, machine);
  EXPECT_EQ(plan.device, "cuda:0");
  EXPECT_EQ(plan.machine, machine.name);
  EXPECT_EQ(plan.budget.outside, 768_MiB);
  EXPECT_EQ(plan.budget.vram, machine.device_memory_bytes - 768_MiB - 512_MiB);
  EXPECT_EQ(plan.budget.resident, kCount * kWeightBytes);
}

TEST(MachinePlan, StreamsFromPageLockedMemoryOverTheLinkOfThatMachine) {
  const Placement plan = smallest_plan("rtx4090");
  EXPECT_EQ(plan.budget.pinned, kCount * kWeightBytes);
  EXPECT_EQ(plan.budget.file, 0U);
  EXPECT_GE(plan.predicted.streamed_bytes, (kCount - 1) * kWeightBytes);
  const double link = shipped_profile("rtx4090").link_bytes_per_us;
  EXPECT_GT(plan.predicted.time_us, static_cast<double>(plan.predicted.streamed_bytes) / link);
  const double ratio = smallest_plan("rtx4090-x8").predicted.time_us / plan.predicted.time_us;
  EXPECT_GT(ratio, 1.8);
  EXPECT_LT(ratio, 2.05);
}

TEST(MachinePlan, KnowsFromSizesOfExampleCallsWhatIsComputed) {
  constexpr std::int64_t kRows = 2048;
  const Placement plan = smallest_plan("gtx1060", {{"forward", {rows(kRows)}, {}}});
  const double operations = 2. * kCount * kRows * kWidth * kWidth;
  EXPECT_GE(plan.predicted.time_us, operations / shipped_profile("gtx1060").fp32_flops_per_us);
  EXPECT_LT(smallest_plan("gtx1060").predicted.time_us, plan.predicted.time_us / 2);
  EXPECT_EQ(plan.budget.reserve_by, Evidence::sizes);
  const std::uint64_t activations = kRows * kWidth * 4;
  EXPECT_GE(plan.budget.reserve, 64_MiB + 2 * activations);
  EXPECT_LT(plan.budget.reserve, 66_MiB + 4 * activations);
}

TEST(MachinePlan, LeavesTheModuleAsItWas) {
  const torch::jit::Module module = eight_weights();
  const at::Tensor weight = module.attr("w3").toTensor();
  const at::Tensor before = weight.clone();
  const void* const data = weight.data_ptr();
  Options options = options_for(1_GiB);
  options.example_calls = {{"forward", {rows()}, {}}};
  preview(module, options, shipped_profile("l4"));
  EXPECT_EQ(module.attr("w3").toTensor().data_ptr(), data);
  EXPECT_TRUE(at::equal(module.attr("w3").toTensor(), before));
}

TEST(MachinePlan, WithMoreThanThatMachineHasIsRefusedWithBothFigures) {
  const MachineProfile machine = shipped_profile("gtx1060");
  EXPECT_NO_THROW(preview(eight_weights(), options_for(machine.device_memory_bytes), machine));
  try {
    preview(eight_weights(), options_for(machine.device_memory_bytes + 1), machine);
    FAIL() << "it was planned";
  } catch (const InputError& error) {
    const std::string why = error.what();
    EXPECT_NE(why.find(std::to_string(machine.device_memory_bytes)), std::string::npos) << why;
    EXPECT_NE(why.find(std::to_string(machine.device_memory_bytes + 1)), std::string::npos) << why;
    EXPECT_NE(why.find("GTX 1060"), std::string::npos) << why;
  }
}

TEST(MachinePlan, WithTheCostsOfAHostIsForTheDeviceAtHand) {
  MachineProfile host = shipped_profile("rtx4090");
  host.device_memory_bytes = 0;
  EXPECT_EQ(preview(eight_weights(), options_for(1_GiB), host).device, kDevice.str());
}

} // namespace
} // namespace offload::test
