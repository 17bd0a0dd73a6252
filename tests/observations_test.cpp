#include <gtest/gtest.h>

#include <offload/bytes.h>
#include <offload/runtime/observations.h>

#include "model_of.h"

namespace offload::test {
namespace {

TEST(Observations, AssumeWhatCallsTakeUntilOneHasBeenSeen) {
  const Model model = model_of({1_MiB}, c10::Device(c10::kCUDA, 0));
  Observations observed(model, "forward");
  EXPECT_EQ(observed.divide(1_GiB).call, 64_MiB);
  observed.activations.record(1, 2_MiB);
  EXPECT_EQ(observed.divide(1_GiB).call, 2_MiB);
  observed.record_state(3_MiB);
  observed.record_state(1_MiB);
  EXPECT_EQ(observed.divide(1_GiB).state, 3_MiB) << "the most that was seen";
}

TEST(Observations, OfAHostCountNothingForCalls) {
  const Model model = model_of({1_MiB}, c10::kCPU);
  Observations observed(model, "forward");
  observed.activations.record(1, 2_MiB);
  EXPECT_EQ(observed.divide(1_GiB).call, 0U);
}

TEST(Observations, PlanForTheFirstMethodThatWasSeen) {
  const Model model = model_of({4_MiB, 4_MiB, 4_MiB}, c10::kCPU);
  Observations observed(model, "forward");
  observed.record_steps("other", 0, {{{0}}, {{1}}});
  EXPECT_EQ(observed.plan(4_MiB).predicted.streamed_bytes, 8_MiB);
  observed.record_steps("forward", 0, {{{2}}});
  EXPECT_EQ(observed.plan(4_MiB).predicted.streamed_bytes, 8_MiB);
}

/// What other methods read must find room, though they cost no time.
TEST(Observations, KeepRoomForWhatOtherMethodsRead) {
  const Model model = model_of({4_MiB, 4_MiB, 4_MiB}, c10::kCPU);
  Observations observed(model, "forward");
  observed.record_steps("forward", 0, {{{0}}});
  EXPECT_EQ(observed.divide(1_GiB).least_ring, 4_MiB);
  const Observations before = observed;
  observed.record_steps("other", 0, {{{0, 1, 2}}});
  EXPECT_EQ(observed.divide(1_GiB).least_ring, 12_MiB);
  EXPECT_EQ(before.divide(1_GiB).least_ring, 4_MiB);
}

/// Sixteen weights, and calls that take as much as one of them.
Observations observed_of(const Model& model, double flops) {
  Observations observed(model, "forward");
  std::vector<LeasedStep> steps;
  for (WeightId weight = 0; weight < model.count(); ++weight) {
    steps.push_back({{weight}, flops});
  }
  observed.record_steps("forward", 0, std::move(steps));
  observed.activations.record(1, 16_MiB);
  return observed;
}

Model sixteen_weights(int callers) {
  Model model = model_of(std::vector<std::uint64_t>(16, 16_MiB), c10::Device(c10::kCUDA, 0));
  model.lanes = 8;
  model.callers = callers;
  return model;
}

TEST(Observations, PlanForAsManyLanesAsPay) {
  const Model model = sixteen_weights(8);
  EXPECT_EQ(observed_of(model, 0).plan(14 * 16_MiB).callers.lanes, 8) << "a pass for all saves more than weights do";
  EXPECT_EQ(observed_of(model, 1e9).plan(17 * 16_MiB).callers.lanes, 1) << "the device computes all the time";
  EXPECT_EQ(observed_of(model, 0).plan(17 * 16_MiB).round.streamed_bytes, 0) << "what fits, stays";
  const Plan two = observed_of(model, 0).plan(4 * 16_MiB);
  EXPECT_EQ(two.callers.lanes, 2) << "more have no room";
  EXPECT_EQ(two.callers.count, 8);
}

TEST(Observations, PlanForOneCallerUntilThereAreMore) {
  const Model model = sixteen_weights(1);
  Observations observed = observed_of(model, 0);
  EXPECT_EQ(observed.plan(14 * 16_MiB).callers.count, 1);
  EXPECT_EQ(bytes_of(observed.plan(14 * 16_MiB).residency), 13 * 16_MiB);
  while (!observed.demand.record(8)) {
  }
  EXPECT_EQ(observed.plan(14 * 16_MiB).callers.lanes, 8);
}

TEST(Observations, AnswerForOtherMachinesAndLargerCallsOnCopies) {
  const Model model = model_of({16_MiB, 16_MiB, 16_MiB}, c10::Device(c10::kCUDA, 0));
  const Observations observed = observed_of(model, 1e6);
  const std::uint64_t vram = observed.divide(0).minimum();
  const SweepPoint now = observed.point(vram);
  EXPECT_LT(observed.with_faster_copies(Bound::link).point(vram).time_us, now.time_us);
  EXPECT_DOUBLE_EQ(observed.with_faster_copies(Bound::disk).point(vram).time_us, now.time_us) << "nothing is on a file";
  const auto larger = observed.with_twice_the_rows();
  ASSERT_TRUE(larger);
  EXPECT_EQ(larger->divide(0).call, 32_MiB);
  EXPECT_EQ(observed.divide(0).call, 16_MiB);
  EXPECT_DOUBLE_EQ(observed.point(vram).time_us, now.time_us);
  EXPECT_FALSE(observed_of(model, 0).with_twice_the_rows()) << "no call was seen to multiply";
}

} // namespace
} // namespace offload::test
