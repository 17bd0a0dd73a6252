#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <numeric>

#include <offload/bytes.h>
#include <offload/error.h>
#include <offload/plan/planner.h>

#include "streaming.h"

namespace offload::test {
namespace {

MachineProfile machine() { return {"a machine", 24000, 10, 12000, 2000, 1e6, 1e6, 3e7, 1e8, 4.5}; }

Pass pass_over(const std::vector<std::uint64_t>& bytes) {
  Pass pass;
  pass.weights = shared_table(bytes);
  return pass;
}

/// Weights of `unit` times 1 to 16, and steps that read one to three of them.
Pass random_pass(std::uint32_t seed, std::uint64_t unit) {
  Dice dice(seed);
  std::vector<std::uint64_t> bytes = dice.sizes(dice.from(2, 14), 16);
  std::for_each(bytes.begin(), bytes.end(), [&](std::uint64_t& units) { units *= unit; });
  Pass pass = pass_over(bytes);
  for (const Step& step : dice.sequence(dice.from(1, 16), bytes.size(), 3)) {
    pass.steps.push_back({step, static_cast<double>(dice.from(1, 4000))});
  }
  return pass;
}

Pass uniform_stack(std::size_t layers, std::uint64_t bytes, double compute_us) {
  Pass pass = pass_over(std::vector<std::uint64_t>(layers, bytes));
  for (WeightId layer = 0; layer < layers; ++layer) {
    pass.steps.push_back({{layer}, compute_us});
  }
  return pass;
}

/// Of the weights that are read.
std::uint64_t bytes_read(const Pass& pass) {
  std::vector<bool> read(pass.weights->size());
  for (const PlanStep& step : pass.steps) {
    for (const WeightId weight : step.weights) {
      read[weight] = true;
    }
  }
  std::uint64_t bytes = 0;
  for (WeightId weight = 0; weight < read.size(); ++weight) {
    bytes += read[weight] ? pass.bytes(weight) : 0;
  }
  return bytes;
}

std::uint64_t bytes_resident(const Residency& residency) { return bytes_of(residency) - residency.ring_bytes; }

/// True when it is better than the rule by more than rounding.
bool check(const Pass& pass, std::uint64_t capacity) {
  const Plan best = plan(pass, capacity, machine());
  const Plan rule = plan_larger_first(pass, capacity, machine());
  EXPECT_LE(best.predicted.time_us, rule.predicted.time_us * (1 + 1e-9));
  const std::uint64_t taken = bytes_of(best.residency);
  if (best.predicted.streamed_bytes > 0) {
    EXPECT_EQ(taken, capacity) << "all of it is used while anything streams";
  } else {
    EXPECT_LE(taken, capacity);
  }
  return best.predicted.time_us < rule.predicted.time_us * 0.99;
}

/// The shortest time of all choices of what stays, each with all of the rest as ring.
double shortest_us(const Pass& pass, std::uint64_t capacity) {
  double shortest = std::numeric_limits<double>::infinity();
  for (std::uint32_t chosen = 0; chosen < 1U << pass.weights->size(); ++chosen) {
    Residency residency;
    for (WeightId weight = 0; weight < pass.weights->size(); ++weight) {
      residency.bytes.push_back((chosen >> weight & 1) != 0 ? pass.bytes(weight) : 0);
    }
    std::uint64_t needed = 0;
    for (const Step& step : streamed_sequence(pass, residency)) {
      needed = std::max(needed, std::accumulate(step.begin(), step.end(), std::uint64_t{0},
                                                [&](std::uint64_t sum, WeightId w) { return sum + pass.bytes(w); }));
    }
    const std::uint64_t kept = bytes_resident(residency);
    if (kept + needed <= capacity) {
      residency.ring_bytes = needed == 0 ? 0 : capacity - kept;
      shortest = std::min(shortest, simulate(pass, residency, machine()).time_us);
    }
  }
  return shortest;
}

TEST(Planner, IsCloseToTheBestOfAllChoices) {
  double worst = 1;
  int compared = 0;
  for (std::uint32_t seed = 0; seed < 200; ++seed) {
    const Pass pass = random_pass(seed, 1_MiB);
    if (pass.weights->size() > 6) {
      continue;
    }
    const std::uint64_t capacity = (minimum_capacity(pass) + bytes_read(pass)) / 2 / 512 * 512;
    const double ratio = plan(pass, std::max(minimum_capacity(pass), capacity), machine()).predicted.time_us /
                         shortest_us(pass, std::max(minimum_capacity(pass), capacity));
    worst = std::max(worst, ratio);
    ++compared;
  }
  EXPECT_GT(compared, 40);
  EXPECT_LE(worst, 1.05);
}

TEST(Planner, IsNeverWorseThanLargerFirst) {
  int better = 0;
  for (std::uint32_t seed = 0; seed < 60; ++seed) {
    SCOPED_TRACE(seed);
    const Pass pass = random_pass(seed, 1_MiB);
    const std::uint64_t low = minimum_capacity(pass);
    const std::uint64_t high = bytes_read(pass);
    for (const std::uint64_t capacity : {low, (low + high) / 2, high - 512, high}) {
      better += check(pass, align_up(std::max(low, capacity), 512)) ? 1 : 0;
    }
  }
  EXPECT_GT(better, 30) << "of 240";
}

TEST(Planner, IsNeverWorseThanLargerFirstOnUniformStacks) {
  for (const double compute_us : {10.0, 500.0, 5000.0}) {
    for (const std::uint64_t layers : {1, 2, 8, 30}) {
      const Pass pass = uniform_stack(layers, 16_MiB, compute_us);
      for (std::uint64_t kept = 1; kept <= layers; kept += 3) {
        check(pass, kept * 16_MiB);
      }
    }
  }
}

TEST(Planner, RunsInTheMinimumAndNotInLess) {
  for (std::uint32_t seed = 0; seed < 60; ++seed) {
    SCOPED_TRACE(seed);
    const Pass pass = random_pass(seed, 512);
    const std::uint64_t minimum = minimum_capacity(pass);
    EXPECT_NO_THROW(plan(pass, minimum, machine()));
    EXPECT_THROW(plan(pass, minimum - 512, machine()), Error);
  }
}

TEST(Planner, StreamsNothingWhenAllFits) {
  for (std::uint32_t seed = 0; seed < 30; ++seed) {
    const Pass pass = random_pass(seed, 1_MiB);
    const Plan best = plan(pass, bytes_read(pass), machine());
    EXPECT_EQ(best.predicted.streamed_bytes, 0U);
    EXPECT_EQ(best.predicted.stall_us, 0);
    EXPECT_EQ(best.residency.ring_bytes, 0U);
  }
}

TEST(Planner, KeepsWhatALongRingWouldOnlySmooth) {
  Pass pass = uniform_stack(16, 16_MiB, 3000); // each comes in 700 us
  std::vector<std::uint64_t> bytes(16, 16_MiB);
  bytes.push_back(128_MiB);
  pass.weights = shared_table(bytes);
  pass.steps.push_back({{16}, 24000});
  const Plan best = plan(pass, 288_MiB, machine());
  EXPECT_GE(bytes_resident(best.residency), 128_MiB);
  EXPECT_GE(best.residency.ring_bytes, 8 * kBatchBytes);
}

TEST(Planner, BesideARingAddsToWhatIsKept) {
  const Pass pass = uniform_stack(16, 10_MiB, 10);
  Residency kept{std::vector<std::uint64_t>(16), 0};
  kept.bytes[3] = kept.bytes[4] = kept.bytes[5] = 10_MiB;
  for (const std::uint64_t capacity : {0_MiB, 30_MiB, 85_MiB, 160_MiB}) {
    const Plan plan = plan_beside_ring(pass, capacity, 30_MiB, machine(), kept);
    EXPECT_TRUE(plan.residency.stays(3) && plan.residency.stays(4) && plan.residency.stays(5));
    EXPECT_EQ(bytes_resident(plan.residency), std::max(30_MiB, capacity / 10_MiB * 10_MiB));
  }
}

TEST(Planner, TakesNoRoomForWhatNothingReads) {
  Pass pass = uniform_stack(3, 1_MiB, 10);
  pass.weights = shared_table({1_MiB, 1_MiB, 1_MiB, 64_MiB});
  const Plan best = plan(pass, 3_MiB, machine());
  EXPECT_EQ(best.predicted.streamed_bytes, 0U);
  EXPECT_FALSE(best.residency.stays(3));
}

TEST(Planner, PlansAPassOfNothing) {
  EXPECT_EQ(minimum_capacity(Pass{}), 0U);
  EXPECT_EQ(plan(Pass{}, 0, machine()).predicted.streamed_bytes, 0U);
}

TEST(Planner, CountsATiedWeightForEachUse) {
  // Weight 0 is read in every second step: kept, resident or in the ring, it saves eight copies, and any other only
  // one.
  Pass pass = pass_over(std::vector<std::uint64_t>(9, 16_MiB));
  for (WeightId weight = 1; weight < 9; ++weight) {
    pass.steps.push_back({{0}, 10});
    pass.steps.push_back({{weight}, 10});
  }
  const Residency streamed{std::vector<std::uint64_t>(9), 16_MiB};
  EXPECT_EQ(simulate(pass, streamed, machine()).streamed_bytes, 16 * 16_MiB);
  const Plan best = plan(pass, 2 * 16_MiB, machine());
  EXPECT_EQ(best.predicted.streamed_bytes, 8 * 16_MiB);
}

TEST(Planner, CountsStagedBytesAtTheRateOfTheHost) {
  Pass pass = uniform_stack(8, 16_MiB, 10);
  const Residency all_streamed{std::vector<std::uint64_t>(8), 64_MiB};
  const double pinned_us = simulate(pass, all_streamed, machine()).time_us;
  WeightTable staged = *pass.weights;
  std::for_each(staged.begin(), staged.end(), [](WeightEntry& weight) { weight.source.direct = false; });
  pass.weights = std::make_shared<const WeightTable>(staged);
  const double staged_us = simulate(pass, all_streamed, machine()).time_us;
  EXPECT_GT(staged_us, 1.8 * pinned_us);
}

/// Also where weights of one batch lie side by side, but in different kinds of memory.
TEST(Planner, CountsEachWeightAtTheRateOfWhereItLies) {
  constexpr double kBytes = 1_MiB;
  Pass pass = uniform_stack(20, 1_MiB, 1);
  WeightTable weights = *pass.weights;
  for (WeightId weight = 2; weight < 20; ++weight) {
    weights[weight].source.direct = false;
    weights[weight].source.kind = weight < 18 ? Source::Kind::memory : Source::Kind::file;
  }
  pass.weights = std::make_shared<const WeightTable>(weights);
  const MachineProfile costs = machine();
  const double bytes_us = 2 * kBytes / costs.link_bytes_per_us + 16 * kBytes / costs.host_copy_bytes_per_us +
                          2 * kBytes / costs.file_bytes_per_us;
  const double copies = 15; // about so many, of one or two weights
  const Simulated simulated = simulate(pass, {std::vector<std::uint64_t>(20), 8_MiB}, costs);
  EXPECT_EQ(simulated.streamed_bytes, 20_MiB);
  EXPECT_NEAR(simulated.time_us, bytes_us + copies * costs.copy_overhead_us, 100);
}

TEST(Planner, PredictsNoLessThanEitherLimit) {
  int link_bound = 0;
  for (std::uint32_t seed = 0; seed < 40; ++seed) {
    SCOPED_TRACE(seed);
    Pass pass = random_pass(seed, 1_MiB);
    if (seed % 2 == 0) { // as it is, compute is the limit
      std::for_each(pass.steps.begin(), pass.steps.end(), [](PlanStep& step) { step.compute_us /= 50; });
    }
    const Plan best = plan(pass, align_up((minimum_capacity(pass) + bytes_read(pass)) / 2, 512), machine());
    const double link_us = static_cast<double>(best.predicted.streamed_bytes) / machine().link_bytes_per_us;
    double compute_us = 0;
    for (const PlanStep& step : pass.steps) {
      compute_us += step.compute_us;
    }
    EXPECT_GE(best.predicted.time_us, compute_us * (1 - 1e-9));
    EXPECT_GE(best.predicted.time_us, link_us * (1 - 1e-9));
    link_bound += link_us > compute_us ? 1 : 0;
    EXPECT_NEAR(best.predicted.time_us, compute_us + best.predicted.stall_us, 100);
  }
  EXPECT_GT(link_bound, 10) << "of 40";
}

/// The oracle: what the plan says is what a streamer moves.
TEST(Planner, PredictsTheBytesThatAStreamerMoves) {
  for (std::uint32_t seed = 0; seed < 2000; ++seed) {
    SCOPED_TRACE(seed);
    const Pass pass = random_pass(seed, kUnit);
    Dice dice(seed + 1000);
    const std::uint64_t capacity = dice.from(minimum_capacity(pass) / kUnit, bytes_read(pass) / kUnit) * kUnit;
    const Plan best = plan(pass, capacity, machine());
    Shape shape;
    for (const WeightEntry& weight : *pass.weights) {
      shape.units.push_back(weight.bytes / kUnit);
    }
    shape.ring_units = best.residency.ring_bytes / kUnit;
    shape.batch_units = kBatchBytes / kUnit;
    shape.seed = seed;
    Streaming device(shape);
    const SequencePtr sequence = share(streamed_sequence(pass, best.residency));
    constexpr std::size_t kWarm = 12;
    const std::size_t calls = best.predicted.period;
    std::uint64_t before = 0;
    for (std::size_t call = 0; call < kWarm + calls; ++call) {
      before = call == kWarm ? device.bytes_used() : before;
      device.call(0, sequence);
    }
    EXPECT_EQ((device.bytes_used() - before) / calls, best.predicted.streamed_bytes);
    EXPECT_EQ(device.finish(), "");
  }
}

/// Of a room for some of its weights, the largest that stream count; and what streams always finds room.
TEST(Planner, KeepsRoomForWhateverTheRunPicks) {
  Pass pass = pass_over({512, 1024, 2048, 4096});
  pass.steps = {{{0}, 1}, {{1}, 1}, {{2}, 1}, {{3}, 1}};
  pass.choices = {{{0, 1, 2, 3}, 2}};
  EXPECT_EQ(minimum_capacity(pass), 4096U + 2048U);
  for (std::uint64_t capacity = minimum_capacity(pass); capacity <= 8192; capacity += 512) {
    const Residency residency = plan(pass, capacity, machine()).residency;
    std::vector<std::uint64_t> streamed;
    std::uint64_t taken = residency.ring_bytes;
    for (WeightId weight = 0; weight < pass.weights->size(); ++weight) {
      (residency.stays(weight) ? taken : streamed.emplace_back(0)) += pass.bytes(weight);
    }
    std::sort(streamed.rbegin(), streamed.rend());
    streamed.resize(2);
    EXPECT_GE(residency.ring_bytes, streamed[0] + streamed[1]) << capacity;
    EXPECT_LE(taken, capacity);
  }
}

TEST(OrderOfUse, IsThatOfTheFirstStepsAndThenOfNumbers) {
  EXPECT_EQ(order_of_use({{{2}}, {{4, 2}}, {{0}}}, 5), std::vector<WeightId>({2, 4, 0, 1, 3}));
}

TEST(StreamedSequence, LeavesOutWhatIsResident) {
  Pass pass = pass_over({512, 512, 512});
  pass.steps = {{{0, 1}, 1}, {{0}, 1}, {{2}, 1}};
  EXPECT_EQ(streamed_sequence(pass, {{1, 0, 0}, 0}), Sequence({{1}, {2}}));
}

/// For one, a ring of one layer does: the next is brought while a layer that stays computes.
TEST(Planner, LeavesALongerRingToSeveralCallers) {
  const Pass pass = uniform_stack(32, 32_MiB, 200);
  const std::uint64_t capacity = 19 * 32_MiB;
  const Plan one = plan(pass, capacity, machine());
  const Plan eight = plan(pass, capacity, machine(), {4, 4});
  EXPECT_EQ(one.callers.count, 1);
  EXPECT_EQ(eight.callers.count, 4);
  EXPECT_GE(eight.residency.ring_bytes, one.residency.ring_bytes);
  EXPECT_LE(eight.round.time_us, simulate(pass, one.residency, machine(), {4, 4}).time_us);
  EXPECT_EQ(eight.predicted.time_us, simulate(pass, eight.residency, machine()).time_us);
}

} // namespace
} // namespace offload::test
