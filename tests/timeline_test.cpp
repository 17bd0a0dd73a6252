#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include <offload/bytes.h>
#include <offload/plan/planner.h>
#include <offload/plan/simulate.h>

#include "weight_tables.h"

namespace offload::test {
namespace {

using Lane = Timeline::Lane;

MachineProfile machine_of_timelines() { return {"a machine", 50e3, 5, 20e3, 2e3, 1e6, 1e6, 1e6, 1e6, 10}; }

Pass pass_of(const std::vector<std::uint64_t>& bytes, double compute_us) {
  Pass pass;
  pass.weights = shared_table(bytes);
  for (WeightId weight = 0; weight < bytes.size(); ++weight) {
    pass.steps.push_back({{weight}, compute_us});
  }
  return pass;
}

std::uint64_t bytes_on(const Timeline& timeline, Lane lane) {
  std::uint64_t bytes = 0;
  for (const Timeline::Entry& entry : timeline.entries) {
    bytes += entry.lane == lane ? entry.bytes : 0;
  }
  return bytes;
}

void expect_in_order(const Timeline& timeline) {
  constexpr double kRounding = 1e-6;
  const Timeline::Entry* before = nullptr;
  for (const Timeline::Entry& entry : timeline.entries) {
    EXPECT_GT(entry.us, 0);
    EXPECT_GE(entry.begin_us, 0);
    EXPECT_LE(entry.begin_us + entry.us, timeline.time_us + kRounding);
    EXPECT_FALSE(entry.weights.empty());
    if (before && before->lane == entry.lane) {
      EXPECT_GE(entry.begin_us, before->begin_us + before->us - kRounding) << to_string(entry.lane);
    }
    before = &entry;
  }
}

/// Two of four layers stay; each of the others is computed while the next is brought, in 676 us.
TEST(Timeline, ShowsWhatIsCopiedComputedAndWaitedFor) {
  const Pass pass = pass_of(std::vector<std::uint64_t>(4, 32_MiB), 100);
  const Residency residency{{32_MiB, 0, 32_MiB, 0}, 64_MiB - 512};
  const Timeline timeline = timeline_of(pass, residency, machine_of_timelines());
  expect_in_order(timeline);
  std::vector<std::string> computed;
  std::vector<std::string> copied;
  std::vector<std::string> awaited;
  for (const Timeline::Entry& entry : timeline.entries) {
    auto& names = entry.lane == Lane::link ? copied : entry.lane == Lane::compute ? computed : awaited;
    names.insert(names.end(), entry.weights.begin(), entry.weights.end());
  }
  EXPECT_EQ(computed, (std::vector<std::string>{"w0", "w1", "w2", "w3"}));
  EXPECT_EQ(awaited, (std::vector<std::string>{"w1", "w3"}));
  EXPECT_NE(std::find(copied.begin(), copied.end(), "w1"), copied.end());
  EXPECT_EQ(std::find(copied.begin(), copied.end(), "w2"), copied.end());
}

TEST(Timeline, AddsUpToWhatIsSimulated) {
  for (const double compute_us : {30.0, 300.0, 700.0}) {
    for (const std::uint64_t ring_layers : {1, 2, 4, 5}) {
      const Pass pass = pass_of(std::vector<std::uint64_t>(20, 32_MiB), compute_us);
      const Residency residency{std::vector<std::uint64_t>(20), ring_layers * 32_MiB};
      const Simulated simulated = simulate(pass, residency, machine_of_timelines());
      const Timeline timeline = timeline_of(pass, residency, machine_of_timelines());
      SCOPED_TRACE(std::to_string(compute_us) + " us, a ring of " + std::to_string(ring_layers) + ", period " +
                   std::to_string(simulated.period));
      expect_in_order(timeline);
      EXPECT_NEAR(timeline.busy_us(Lane::compute) + timeline.busy_us(Lane::stall), timeline.time_us, 1e-3);
      EXPECT_NEAR(timeline.busy_us(Lane::compute), simulated.compute_us, 1e-3);
      EXPECT_NEAR(timeline.time_us, simulated.time_us, 1e-3);
      EXPECT_NEAR(timeline.busy_us(Lane::stall), simulated.stall_us, 1e-3);
      EXPECT_EQ(bytes_on(timeline, Lane::link), simulated.streamed_bytes);
    }
  }
}

/// Where calls differ from each other, theirs do from the mean.
TEST(Timeline, HoldsForAnyModel) {
  std::minstd_rand random(1);
  for (int model = 0; model < 40; ++model) {
    std::vector<std::uint64_t> bytes;
    for (int weight = 0; weight < 30; ++weight) {
      bytes.push_back((1 + random() % 64) * 256_KiB);
    }
    const Pass pass = pass_of(bytes, 5.0 * static_cast<double>(1 + random() % 40));
    const std::uint64_t least = minimum_capacity(pass);
    const std::uint64_t all = resident_capacity(pass);
    const Plan best = plan(pass, least + (all - least) * (random() % 10) / 10, machine_of_timelines());
    const Timeline timeline = timeline_of(pass, best.residency, machine_of_timelines());
    SCOPED_TRACE("model " + std::to_string(model) + ", period " + std::to_string(best.predicted.period));
    expect_in_order(timeline);
    EXPECT_NEAR(timeline.busy_us(Lane::compute) + timeline.busy_us(Lane::stall), timeline.time_us, 1e-3);
    if (best.predicted.period == 1) {
      EXPECT_NEAR(timeline.time_us, best.predicted.time_us, 1e-3);
      EXPECT_NEAR(timeline.busy_us(Lane::stall), best.predicted.stall_us, 1e-3);
      EXPECT_NEAR(static_cast<double>(bytes_on(timeline, Lane::link)),
                  static_cast<double>(best.predicted.streamed_bytes), 30);
    }
  }
}

TEST(Timeline, OfWhatIsResidentIsComputeAlone) {
  const Pass pass = pass_of(std::vector<std::uint64_t>(4, 32_MiB), 100);
  const Timeline timeline = timeline_of(pass, all_resident(*pass.weights), machine_of_timelines());
  EXPECT_EQ(timeline.entries.size(), 4U);
  EXPECT_EQ(timeline.busy_us(Lane::compute), timeline.time_us);
  EXPECT_EQ(timeline_of({}, {}, machine_of_timelines()).entries.size(), 0U);
}

} // namespace
} // namespace offload::test
