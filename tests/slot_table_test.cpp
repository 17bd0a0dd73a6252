#include <gtest/gtest.h>

#include <tuple>

#include <offload/ring/slot_table.h>

#include "point.h"
#include "streaming.h"

namespace offload::test {
namespace {

/// All that can be seen of a table: with equal ones, everything goes on alike.
auto seen(const SlotTable& table) {
  std::vector<std::uint64_t> layout;
  table.append_layout(layout);
  std::vector<std::vector<FencePtr>> readers(table.ring().bytes());
  for (std::uint64_t at = 0; at < readers.size(); ++at) {
    table.ring().collect_readers(at, 1, readers[at]);
  }
  return std::tuple(layout, readers, table.ring().bytes_free(), table.leased(), table.bytes_ahead(),
                    table.bytes_used());
}

Step without_place(const SlotTable& table, const Step& step) {
  Step missing;
  std::copy_if(step.begin(), step.end(), std::back_inserter(missing),
               [&](WeightId weight) { return !table.has_place(weight); });
  return missing;
}

/// What a step does to a table, or would: places for what has none, and claims or leases.
bool take(SlotTable& table, SlotTable::Transaction& transaction, const Step& step, bool lease) {
  if (!transaction.place(without_place(table, step))) {
    return false;
  }
  for (const WeightId weight : step) {
    lease ? transaction.lease(weight) : transaction.claim(weight);
  }
  return true;
}

TEST(SlotTable, ATransactionThatIsNotCommittedHasNotBeen) {
  for (std::uint32_t seed = 0; seed < 400; ++seed) {
    SCOPED_TRACE(seed);
    Dice dice(seed);
    const auto sizes = dice.sizes(dice.from(2, 12), 9);
    SlotTable table(sizes, dice.from(8, 60), dice.from(0, 30), 2);
    std::vector<Step> leases;
    for (int turn = 0; turn < 60; ++turn) {
      {
        const auto before = seen(table);
        {
          SlotTable::Transaction dropped(table);
          for (std::uint64_t steps = dice.from(0, 3); steps > 0; --steps) {
            if (dice.chance(30)) {
              dropped.start_over();
            }
            take(table, dropped, dice.step(sizes.size(), 4), dice.chance(50));
          }
        }
        ASSERT_EQ(seen(table), before);
      }
      const Step step = dice.step(sizes.size(), 4);
      SlotTable::Transaction kept(table);
      if (take(table, kept, step, true)) {
        std::vector<Batch> batches;
        const std::uint64_t copied = kept.bytes();
        kept.commit(batches);
        std::uint64_t handed_out = 0;
        for (const Batch& batch : batches) {
          for (const Fetch& fetch : batch.fetches) {
            handed_out += fetch.bytes;
            ASSERT_EQ(table.place(fetch.weight), fetch.place);
            ASSERT_EQ(table.arrival(fetch.weight), batch.arrival);
          }
        }
        ASSERT_EQ(handed_out, copied);
        leases.push_back(step);
      }
      while (!leases.empty() && dice.chance(45)) {
        for (const WeightId weight : leases.back()) {
          table.release(weight, std::make_shared<Point>(static_cast<int>(dice.from(0, 1))));
        }
        leases.pop_back();
      }
    }
  }
}

TEST(SlotTable, PlacesWhatCannotLieTogetherWhereverThereIsRoom) {
  SlotTable table({2, 2, 2, 2}, 6, 0, 1);
  std::vector<Batch> batches;
  SlotTable::Transaction three(table);
  ASSERT_TRUE(take(table, three, {0, 1, 2}, true));
  three.commit(batches);
  table.release(1, std::make_shared<Point>(0));
  SlotTable::Transaction fourth(table);
  EXPECT_FALSE(fourth.place({1, 3}));
  EXPECT_TRUE(fourth.place({3}));
  EXPECT_EQ(table.place(3), 2U);
}

TEST(SlotTable, DisplacesOnlyWhatNobodyElseNeeds) {
  SlotTable table({1, 1, 1}, 3, 0, 1);
  std::vector<Batch> batches;
  SlotTable::Transaction first(table);
  ASSERT_TRUE(take(table, first, {0, 1, 2}, false));
  first.lease(0);
  first.commit(batches);
  table.drop_claim(0);
  SlotTable::Transaction second(table);
  second.lease(0);
  second.lease(1);
  EXPECT_FALSE(second.displace(0)) << "another lease has it";
  EXPECT_FALSE(second.displace(1)) << "a step ahead claims it";
}

TEST(SlotTable, CopiesWhatFailedAgainToTheSamePlace) {
  SlotTable table({3, 2}, 8, 0, 1);
  std::vector<Batch> batches;
  SlotTable::Transaction both(table);
  ASSERT_TRUE(take(table, both, {0, 1}, true));
  both.commit(batches);
  for (Batch& batch : batches) {
    batch.arrival->failure = batch.fetches.front().weight == 1 ? "the disk is gone" : "";
    batch.arrival->issued = true;
  }
  batches.clear();
  EXPECT_EQ(table.refetch({0, 1}, batches), 0U) << "nobody has been told yet";
  table.mark_failed();
  EXPECT_EQ(table.refetch({0, 1}, batches), 1U);
  ASSERT_EQ(batches.size(), 1U);
  EXPECT_EQ(batches[0].fetches[0].weight, 1U);
  EXPECT_EQ(batches[0].fetches[0].place, table.place(1));
  EXPECT_EQ(table.bytes_used(), 5U) << "counted once";
}

} // namespace
} // namespace offload::test
