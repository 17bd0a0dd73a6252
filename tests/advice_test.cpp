#include <gtest/gtest.h>

#include <offload/bytes.h>
#include <offload/plan/advice.h>

#include "weight_tables.h"

namespace offload::test {
namespace {

/// A plan for one caller: 100 ms a call, for which the link works all the time, with 1 GB at 10 GB/s.
Expected bound_by_link() { return {{100e3, 80e3, 1'000'000'000, 1, 100e3, 20e3}, {}, 1}; }

/// One of which nothing streams.
Expected resident() { return {{10e3, 0, 0, 1, 0, 10e3}, {}, 1}; }

/// Calls in a closed loop on a host.
RunFigures run_of(double us, double stall_us, std::uint64_t crossed) { return {10, us, us, stall_us, crossed, 0}; }

TEST(Advice, ARunThatAgreesIsBoundAsPredicted) {
  for (const double us : {70e3, 100e3, 149e3}) {
    const RunFigures run = run_of(us, 0.8 * us, 1'000'000'000);
    const Deviation deviation = deviation_of(run, bound_by_link());
    EXPECT_EQ(deviation.factor, 1) << us;
    EXPECT_EQ(bound_of(run, bound_by_link(), deviation), Bound::link);
    EXPECT_EQ(describe(deviation), "");
  }
}

TEST(Advice, CallsThatStallLongerHaveASlowerLink) {
  const RunFigures run = run_of(400e3, 380e3, 1'000'000'000);
  const Deviation deviation = deviation_of(run, bound_by_link());
  EXPECT_DOUBLE_EQ(deviation.factor, 4);
  EXPECT_EQ(deviation.cost, Bound::link);
  EXPECT_NEAR(deviation.bytes_per_us, 1e9 / 380e3, 1);
  EXPECT_NEAR(deviation.profile_bytes_per_us, 10e3, 1);
  EXPECT_EQ(bound_of(run, bound_by_link(), deviation), Bound::link);
  EXPECT_EQ(describe(deviation),
            "Calls take 4 times as long as predicted: weights cross the link more slowly than by "
            "the profile, at 2.63 GB/s at the most instead of 10.");
}

TEST(Advice, CallsThatTakeLongerWithoutStallingHaveASlowerDevice) {
  const RunFigures run = run_of(400e3, 0, 1'000'000'000);
  const Deviation deviation = deviation_of(run, bound_by_link());
  EXPECT_EQ(deviation.cost, Bound::compute);
  EXPECT_EQ(bound_of(run, bound_by_link(), deviation), Bound::compute) << "though it was to be the link";
  Expected launches = resident();
  launches.binding.device = Bound::launches;
  const RunFigures slow = run_of(30e3, 0, 0);
  EXPECT_EQ(deviation_of(slow, launches).cost, Bound::launches);
  EXPECT_EQ(bound_of(slow, launches, deviation_of(slow, launches)), Bound::launches);
}

TEST(Advice, CallsThatAreFasterThanTheirCopiesHaveAFasterLink) {
  const Deviation deviation = deviation_of(run_of(50e3, 30e3, 1'000'000'000), bound_by_link());
  EXPECT_DOUBLE_EQ(deviation.factor, 0.5);
  EXPECT_EQ(deviation.cost, Bound::link);
  EXPECT_NEAR(deviation.bytes_per_us, 20e3, 1);
  RunFigures cached = run_of(50e3, 0, 0);
  cached.cached_bytes = 1'000'000'000;
  EXPECT_EQ(deviation_of(cached, bound_by_link()).cached_bytes, 1'000'000'000U);
  EXPECT_NE(describe(deviation_of(cached, bound_by_link())).find("in the page cache"), std::string::npos);
  EXPECT_EQ(deviation_of(run_of(2e3, 0, 0), resident()).cost, Bound::compute);
}

/// Calls on a GPU return early, and a link that works ahead between calls makes them shorter.
TEST(Advice, CallsWithPausesBetweenThemAreNotFaster) {
  RunFigures run = run_of(10e3, 0, 1'000'000'000);
  run.most_us = 300e3;
  EXPECT_EQ(deviation_of(run, bound_by_link()).factor, 1);
}

TEST(Advice, TwoCallsAreNotEnoughToDeviate) {
  RunFigures run = run_of(900e3, 0, 0);
  run.calls = 2;
  EXPECT_EQ(deviation_of(run, resident()).factor, 1);
  EXPECT_EQ(deviation_of(run_of(900e3, 0, 0), {}).factor, 1) << "nothing was predicted";
}

/// As long as the link takes for what has no room, but at least so long as the device computes.
SweepPoint with_link(std::uint64_t vram, double gb_per_s, double compute_us) {
  const std::uint64_t streamed = 1_GiB - vram;
  const double link_us = static_cast<double>(streamed) / (1e3 * gb_per_s);
  return {vram, std::max(link_us, compute_us), streamed, link_us > compute_us ? Bound::link : Bound::compute};
}

Alternatives alternatives_at(std::uint64_t vram, double compute_us) {
  return {with_link(vram, 10, compute_us), 1_GiB, [=](std::uint64_t other) { return with_link(other, 10, compute_us); },
          [=] { return with_link(vram, 20, compute_us); }, [=] { return with_link(vram, 10, 2 * compute_us); }};
}

TEST(Advice, OfACallThatTheLinkBindsIsSortedByGain) {
  const auto advice = advise(alternatives_at(200_MiB, 1e3), {});
  ASSERT_EQ(advice.size(), 3U);
  EXPECT_EQ(advice[0].change, Change::budget);
  EXPECT_EQ(advice[0].then.vram, 1_GiB);
  EXPECT_EQ(advice[0].then.streamed_bytes, 0U);
  for (const std::size_t other : {1, 2}) {
    EXPECT_NEAR(advice[other].gain, 2, 1e-6) << describe(advice[other]);
    EXPECT_TRUE(advice[other].change == Change::link || advice[other].change == Change::rows);
  }
  EXPECT_EQ(describe(advice[0]).find(
                "With vram_budget 1 GiB (1073741824 bytes), where nothing streams, calls are predicted "),
            0U);
}

TEST(Advice, NamesTheKneeWhereMoreMemorySavesLess) {
  const double compute_us = static_cast<double>(1_GiB - 500_MiB) / 10e3; // from there on the device takes longer
  const auto advice = advise(alternatives_at(100_MiB, compute_us), {});
  const auto knee = std::find_if(advice.begin(), advice.end(), [](const Advice& each) {
    return each.change == Change::budget && each.then.streamed_bytes > 0;
  });
  ASSERT_NE(knee, advice.end());
  EXPECT_NEAR(static_cast<double>(knee->then.vram), 500_MiB, 120_MiB);
}

TEST(Advice, WhatDoesNotHelpOrDoesNotApplyIsNoAdvice) {
  const double compute_us = static_cast<double>(1_GiB) / 10e3; // always longer than copies
  EXPECT_TRUE(advise(alternatives_at(200_MiB, compute_us), {}).empty());
  EXPECT_TRUE(advise({with_link(200_MiB, 10, 1), 0, nullptr, nullptr, nullptr}, {}).empty());
  EXPECT_EQ(advise(alternatives_at(200_MiB, 1e3), {Bound::disk, Bound::compute})[1].change, Change::disk);
}

TEST(Advice, TellsDiskFromLinkAndLaunchesFromWork) {
  const MachineProfile machine{"a machine", 50e3, 5, 20e3, 2e3, 1e6, 1e6, 1e6, 1e6, 10};
  WeightTable weights = table_of({32_MiB, 32_MiB});
  weights[1].source.kind = Source::Kind::file;
  Pass pass;
  pass.weights = std::make_shared<const WeightTable>(weights);
  pass.steps = {{{0}, 100}, {{1}, 100}};
  const Residency none{{0, 0}, 64_MiB};
  EXPECT_EQ(binding_of(pass, none, machine).copies, Bound::disk);
  EXPECT_EQ(binding_of(pass, {{0, 32_MiB}, 32_MiB}, machine).copies, Bound::link);
  EXPECT_EQ(binding_of(pass, none, machine).device, Bound::compute);
  pass.steps = {{{0}, 1, 10}, {{1}, 1, 10}};
  EXPECT_EQ(binding_of(pass, none, machine).device, Bound::launches);
  EXPECT_EQ(bound_of({100, 0, 0, 1, 99, 50}, {Bound::disk, Bound::launches}), Bound::disk);
  EXPECT_EQ(bound_of({100, 0, 0, 1, 99, 99}, {Bound::disk, Bound::launches}), Bound::launches);
}

} // namespace
} // namespace offload::test
