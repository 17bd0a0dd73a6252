// Which weights stay by other rules than the fastest.

#include <gtest/gtest.h>

#include <algorithm>

#include <offload/bytes.h>
#include <offload/plan/orders.h>
#include <offload/plan/planner.h>

#include "streaming.h"
#include "weight_tables.h"

namespace offload::test {
namespace {

MachineProfile machine_of_rules() { return {"a machine", 24000, 10, 12000, 2000, 1e6, 1e6, 3e7, 1e8, 4.5}; }

/// Weights of so many MiB, each read by a step of its own, in this order.
Pass pass_in_order(const std::vector<std::uint64_t>& mib, const Step& order) {
  std::vector<std::uint64_t> bytes = mib;
  std::for_each(bytes.begin(), bytes.end(), [](std::uint64_t& each) { each *= 1_MiB; });
  Pass pass;
  pass.weights = shared_table(bytes);
  for (const WeightId weight : order) {
    pass.steps.push_back({{weight}, 50});
  }
  return pass;
}

std::vector<WeightId> resident(const Plan& plan) {
  std::vector<WeightId> weights;
  for (WeightId weight = 0; weight < plan.residency.bytes.size(); ++weight) {
    if (plan.residency.stays(weight)) {
      weights.push_back(weight);
    }
  }
  return weights;
}

TEST(Rules, KeepWhatTheyName) {
  const Pass pass = pass_in_order({2, 8, 4, 2, 16, 2, 4, 2}, {7, 6, 5, 4, 3, 2, 1, 0});
  const auto kept = [&](Rule rule) {
    return resident(plan(pass, 33_MiB, machine_of_rules(), {}, rule)); // 16 of them for the ring, while 4 streams
  };
  EXPECT_EQ(kept(Rule::first_first), (std::vector<WeightId>{4, 5, 6, 7})) << "then the ring needs 8 for weight 1";
  EXPECT_EQ(kept(Rule::module_order), (std::vector<WeightId>{0, 1, 2, 3})) << "0 to 3: then comes one without room";
  const std::vector<WeightId> larger = kept(Rule::larger_first);
  EXPECT_EQ(larger.front(), 1U);
  EXPECT_NE(std::find(larger.begin(), larger.end(), 4U), larger.end());
}

TEST(Rules, HaveOrdersOfTheirOwn) {
  const Pass pass = pass_in_order({2, 8, 4}, {2, 0, 1});
  EXPECT_EQ(orders_by(Rule::larger_first, pass)[0].weights, (std::vector<WeightId>{1, 2, 0}));
  EXPECT_EQ(orders_by(Rule::first_first, pass)[0].weights, (std::vector<WeightId>{2, 0, 1}));
  EXPECT_EQ(orders_by(Rule::module_order, pass)[0].weights, (std::vector<WeightId>{0, 1, 2}));
  EXPECT_EQ(orders_by(Rule::spread, pass)[0].weights, (std::vector<WeightId>{2, 1, 0}));
  for (const Rule rule : kRules) {
    EXPECT_EQ(orders_by(rule, pass).size(), rule == Rule::fastest ? 5U : 1U) << to_string(rule);
  }
}

TEST(Rules, AreNeverFasterThanTheFastest) {
  constexpr double kSame = 1.01;
  for (std::uint32_t seed = 0; seed < 60; ++seed) {
    Dice dice(seed);
    std::vector<std::uint64_t> mib = dice.sizes(dice.from(2, 24), 32);
    Step order;
    for (WeightId weight = 0; weight < mib.size(); ++weight) {
      order.insert(order.begin() + static_cast<std::ptrdiff_t>(dice.from(0, order.size())), weight);
    }
    const Pass pass = pass_in_order(mib, order);
    const std::uint64_t least = minimum_capacity(pass);
    const std::uint64_t capacity = least + (resident_capacity(pass) - least) * dice.from(0, 8) / 8;
    const double fastest_us = plan(pass, capacity, machine_of_rules()).round.time_us;
    for (const Rule rule : kRules) {
      SCOPED_TRACE(std::to_string(seed) + ", " + to_string(rule));
      const Plan other = plan(pass, capacity, machine_of_rules(), {}, rule);
      EXPECT_LE(fastest_us, kSame * other.round.time_us);
      EXPECT_LE(bytes_of(other.residency), capacity);
    }
  }
}

TEST(Rules, StreamNothingWhereAllFits) {
  const Pass pass = pass_in_order({2, 8, 4}, {2, 0, 1});
  for (const Rule rule : kRules) {
    EXPECT_EQ(resident(plan(pass, 14_MiB, machine_of_rules(), {}, rule)).size(), 3U) << to_string(rule);
  }
}

} // namespace
} // namespace offload::test
