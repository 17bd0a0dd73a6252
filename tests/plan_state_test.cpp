#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <thread>

#include <offload/bytes.h>
#include <offload/error.h>
#include <offload/runtime/plan_state.h>

#include "model_of.h"

namespace offload::test {
namespace {

const c10::Device kGpu(c10::kCUDA, 0);

/// As examine() leaves it for `count` weights of 4 MiB.
Model named_model(std::size_t count, c10::Device device) {
  Model model = model_of(std::vector<std::uint64_t>(count, 4_MiB), device);
  model.program.stays_because.resize(count);
  for (const WeightEntry& entry : *model.weights) {
    Weight& weight = model.program.weights.weights.emplace_back();
    weight.name = entry.name;
    weight.begin = 0;
    weight.end = entry.bytes;
  }
  return model;
}

CallMemory took(std::uint64_t bytes) {
  CallMemory memory;
  memory.bytes = bytes;
  return memory;
}

TEST(PlanState, AnswersWithThePlanThatWasMadeForTheBudget) {
  const Model model = named_model(3, c10::kCPU);
  PlanState state(model, "forward");
  state.give({8_MiB, std::nullopt});
  state.record_steps("forward", 0, {{{0}}, {{1}}, {{2}}});
  EXPECT_EQ(state.placement().budget.ring, 0U) << "nothing has been planned yet";
  state.set_plan(state.make_plan(), PlanState::Readiness::placed);
  const Placement placement = state.placement();
  EXPECT_EQ(placement.budget.vram, 8_MiB);
  EXPECT_EQ(placement.budget.resident + placement.budget.ring, 8_MiB);
  EXPECT_EQ(placement.budget.reserve_by, Evidence::calls);
  ASSERT_EQ(placement.weights.size(), 3U);
  EXPECT_EQ(placement.weights[1].name, "w1");
}

TEST(PlanState, PlansAnewWhenLargeCallsHaveNotComeForLong) {
  const Model model = named_model(1, kGpu);
  PlanState state(model, "forward");
  state.give({1_GiB, std::nullopt});
  state.record_memory(1, took(100_MiB), true, 0, 1_GiB);
  state.set_residency({{0}, 4_MiB});
  state.keep_plan();
  state.record_memory(2, took(10_MiB), true, 0, 1_GiB);
  EXPECT_EQ(state.readiness(), PlanState::Readiness::placed);
  for (std::uint64_t call = 0; call < 2 * Activations::kPeriod; ++call) {
    state.record_memory(2, took(10_MiB), true, 0, 1_GiB);
  }
  EXPECT_EQ(state.readiness(), PlanState::Readiness::outdated);
}

TEST(PlanState, HasOneCallerPlanAnewBesideTheOthers) {
  Model model = named_model(3, c10::kCPU);
  model.lanes = 8;
  PlanState state(model, "forward");
  state.give({8_MiB, std::nullopt});
  state.record_steps("forward", 0, {{{0}}, {{1}}, {{2}}});
  state.set_plan(state.make_plan(), PlanState::Readiness::placed);
  EXPECT_EQ(state.begin_replan(), std::nullopt) << "what is placed is what is best";
  while (state.readiness() == PlanState::Readiness::placed) {
    state.record_callers(8);
  }
  EXPECT_TRUE(state.is_placed()) << "calls go on";
  EXPECT_EQ(state.begin_replan(), state.changes());
  EXPECT_EQ(state.begin_replan(), std::nullopt) << "somebody is at it";
  EXPECT_EQ(state.readiness(), PlanState::Readiness::placed);
}

TEST(PlanState, RefusesWhatFitsInNoWayUntilTheBudgetIsLarger) {
  const Model model = named_model(1, kGpu);
  PlanState state(model, "forward");
  state.give({64_MiB, std::nullopt});
  state.record_memory(7, took(100_MiB), true, 0, 1_GiB);
  std::uint64_t needed = 0;
  try {
    state.refuse(7, took(100_MiB), /*ended=*/true);
  } catch (const BudgetError& refused) {
    needed = refused.minimum_bytes();
  }
  EXPECT_GE(needed, 100_MiB);
  EXPECT_FALSE(state.knows(7)) << "nothing is planned with it";
  EXPECT_THROW(state.refuse_again(7), BudgetError);
  state.refuse_again(8);
  state.give({needed, std::nullopt});
  state.refuse_again(7);
}

TEST(PlanState, SaysWhenItIsTheDeviceThatHasNoMore) {
  const Model model = named_model(1, kGpu);
  PlanState state(model, "forward");
  state.give({1_GiB, std::nullopt});
  CallMemory memory = took(100_MiB);
  memory.by_device = true;
  try {
    state.refuse(7, memory, true);
  } catch (const BudgetError&) {
    FAIL() << "no budget would do";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("free device memory"), std::string::npos) << error.what();
  }
  state.refuse_again(7); // it may have more by then
}

TEST(PlanState, PredictsByWhatCallsTookAndMovesWeightsWhereThatPays) {
  const Model model = named_model(6, c10::kCPU);
  PlanState state(model, "forward");
  state.give({16_MiB, std::nullopt});
  state.record_steps("forward", 7, {{{0}}, {{1}}, {{2}}, {{3}}, {{4}}, {{5}}});
  const Residency nothing{std::vector<std::uint64_t>(6), 16_MiB};
  Plan plan = state.make_plan();
  plan.residency = nothing;
  state.set_plan(plan, PlanState::Readiness::placed);
  EXPECT_FALSE(state.begin_alone("forward", 8)) << "a call of another shape";
  EXPECT_TRUE(state.begin_alone("forward", 7));
  const auto record = [&](double lap_us) {
    return state.record_laps("forward", 7, nothing, {std::vector<Lap>(7, {lap_us, 0}), false});
  };
  EXPECT_TRUE(record(5000));
  state.predict_again(PlanState::Then::replan);
  EXPECT_NEAR(state.placement().predicted.time_us, 7 * 5000, 100);
  EXPECT_EQ(state.residency(), nothing);
  EXPECT_TRUE(record(20));
  state.predict_again(PlanState::Then::replan);
  EXPECT_EQ(state.readiness(), PlanState::Readiness::placed) << "two calls may be an accident";
  EXPECT_TRUE(record(20));
  state.predict_again(PlanState::Then::nothing);
  EXPECT_EQ(state.readiness(), PlanState::Readiness::placed) << "nobody has asked for it";
  const double as_placed_us = state.placement().predicted.time_us;
  state.predict_again(PlanState::Then::replan);
  EXPECT_EQ(state.readiness(), PlanState::Readiness::outdated);
  EXPECT_LT(state.make_plan().round.time_us, 0.97 * as_placed_us);
}

TEST(PlanState, LeavesWeightsWhereTheyAreIfThatIsBest) {
  const Model model = named_model(6, c10::kCPU);
  PlanState state(model, "forward");
  state.give({16_MiB, std::nullopt});
  state.record_steps("forward", 7, {{{0}}, {{1}}, {{2}}, {{3}}, {{4}}, {{5}}});
  state.set_plan(state.make_plan(), PlanState::Readiness::placed);
  const Residency placed = state.residency();
  const std::size_t streamed =
      6 - static_cast<std::size_t>(std::count(placed.bytes.begin(), placed.bytes.end(), 4_MiB));
  for (int call = 0; call < 4; ++call) {
    EXPECT_TRUE(state.record_laps("forward", 7, placed, {std::vector<Lap>(streamed + 1, {5000, 0}), false}));
    state.predict_again(PlanState::Then::replan);
  }
  EXPECT_EQ(state.readiness(), PlanState::Readiness::placed) << "the device is the limit, whatever is resident";
}

TEST(PlanState, ForgetsACallThatFailed) {
  const Model model = named_model(2, kGpu);
  PlanState state(model, "forward");
  state.give({1_GiB, std::nullopt});
  const Observations before = state.observations();
  state.record_steps("forward", 0, {{{0}}, {{1}}});
  state.record_memory(1, took(100_MiB), true, 3_MiB, 1_GiB);
  state.restore(before, 1);
  EXPECT_EQ(state.readiness(), PlanState::Readiness::unknown);
  EXPECT_TRUE(state.observations().measured().empty());
  EXPECT_FALSE(state.knows(1));
  EXPECT_EQ(state.budget().state, 6_MiB) << "what it put into the module is there";
}

TEST(PlanState, TellsReadersOfOneMomentWhilePlansChange) {
  const Model model = named_model(2, c10::kCPU);
  PlanState state(model, "forward");
  state.give({4_MiB, std::nullopt});
  state.set_residency({{0, 0}, 4_MiB});
  std::atomic<bool> done = false;
  std::atomic<int> mixed = 0;
  std::thread reader([&] {
    while (!done) {
      const Budget budget = state.placement().budget;
      mixed += budget.resident + budget.ring == budget.vram ? 0 : 1;
    }
  });
  for (int turn = 0; turn < 2000; ++turn) {
    state.set_residency(turn % 2 == 0 ? Residency{{4_MiB, 0}, 0} : Residency{{0, 0}, 4_MiB});
  }
  done = true;
  reader.join();
  EXPECT_EQ(mixed, 0);
}

} // namespace
} // namespace offload::test
