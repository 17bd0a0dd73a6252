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
  observed.record_steps("other", {{{0}}, {{1}}});
  EXPECT_EQ(observed.plan(4_MiB).predicted.streamed_bytes, 8_MiB);
  observed.record_steps("forward", {{{2}}});
  EXPECT_EQ(observed.plan(4_MiB).predicted.streamed_bytes, 8_MiB);
}

/// What other methods read must find room, though they cost no time.
TEST(Observations, KeepRoomForWhatOtherMethodsRead) {
  const Model model = model_of({4_MiB, 4_MiB, 4_MiB}, c10::kCPU);
  Observations observed(model, "forward");
  observed.record_steps("forward", {{{0}}});
  EXPECT_EQ(observed.divide(1_GiB).least_ring, 4_MiB);
  const Observations before = observed;
  observed.record_steps("other", {{{0, 1, 2}}});
  EXPECT_EQ(observed.divide(1_GiB).least_ring, 12_MiB);
  EXPECT_EQ(before.divide(1_GiB).least_ring, 4_MiB);
}

} // namespace
} // namespace offload::test
