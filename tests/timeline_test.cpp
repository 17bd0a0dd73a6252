#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <random>

#include <offload/bytes.h>
#include <offload/plan/planner.h>
#include <offload/plan/recorded_call.h>
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

/// Weights 1 and 3 stream. The laps: what comes before weight 1, with weight 0; then those of 1 and 2; then of 3.
RecordedCall recorded_call() {
  RecordedCall call;
  call.laps = {{{0, 100}, {-50, -40}}, {{150, 350}, {-30, 10}}, {{350, 400}, {20, 30}}};
  call.copies = {{{1}, {-60, 150}}, {{3}, {140, 340}}, {{1}, {390, std::numeric_limits<double>::infinity()}}};
  return call;
}

TEST(Timeline, OfACallThatWasRecordedShowsItsLaps) {
  const Pass pass = pass_of(std::vector<std::uint64_t>(4, 21_MiB), 100);
  const Timeline timeline = timeline_of(recorded_call(), pass, {{21_MiB, 0, 21_MiB, 0}, 64_MiB});
  expect_in_order(timeline);
  EXPECT_DOUBLE_EQ(timeline.time_us, 400);
  EXPECT_DOUBLE_EQ(timeline.busy_us(Lane::compute), 350);
  EXPECT_DOUBLE_EQ(timeline.busy_us(Lane::stall), 50);
  EXPECT_DOUBLE_EQ(timeline.busy_us(Lane::host), 10 + 10) << "from when the call began";
  EXPECT_DOUBLE_EQ(timeline.busy_us(Lane::link), 150 + 190 + 10) << "one after the other, until the call ends";
  std::vector<std::vector<std::string>> computed;
  for (const Timeline::Entry& entry : timeline.entries) {
    if (entry.lane == Lane::compute) {
      computed.push_back(entry.weights);
    }
    if (entry.lane == Lane::stall) {
      EXPECT_EQ(entry.weights, std::vector<std::string>{"w1"});
    }
  }
  EXPECT_EQ(computed, (std::vector<std::vector<std::string>>{{"w0"}, {"w1", "w2"}, {"w3"}}));
  EXPECT_EQ(timeline.entries.front().bytes, 15_MiB) << "150 of 210 us lie in the call";
}

TEST(Timeline, OfACallOfWhichNothingStreamsIsOneLap) {
  const Pass pass = pass_of(std::vector<std::uint64_t>(3, 1_MiB), 100);
  const Timeline timeline = timeline_of({{{{0, 70}, {}}}, {}}, pass, {std::vector<std::uint64_t>(3, 1_MiB), 0});
  ASSERT_EQ(timeline.entries.size(), 1U);
  EXPECT_EQ(timeline.entries[0].weights.size(), 3U);
  EXPECT_EQ(timeline.entries[0].bytes, 3_MiB);
  EXPECT_EQ(timeline_of(RecordedCall(), pass, {std::vector<std::uint64_t>(3), 1_MiB}).entries.size(), 0U);
}

} // namespace
} // namespace offload::test
