// Random weights, rings, steps and lanes against a ring that is written down unit by unit.

#include <gtest/gtest.h>

#include <map>

#include <offload/ring/scheduler.h>

#include "point.h"
#include "streaming.h"

namespace offload::test {
namespace {

/// Follows what a copy engine would do with the batches, in order, and what it would have to wait for.
class Ledger {
 public:
  Ledger(std::vector<std::uint64_t> sizes, std::uint64_t ring, std::uint64_t batch, int lanes)
      : scheduler(sizes, ring, batch, lanes),
        sizes_(std::move(sizes)),
        cells_(ring),
        waited_(lanes),
        leases_(sizes_.size()) {}

  void begin(int lane, const SequencePtr& sequence) {
    std::vector<Batch> batches;
    scheduler.begin(lane, sequence, batches);
    copy(batches);
  }

  bool acquire(int lane, const Step& step, bool at_once = false) {
    std::vector<Batch> batches;
    auto outcome = scheduler.acquire(lane, step, batches, at_once);
    while (outcome == Scheduler::Outcome::waits_for_copies) {
      scheduler.arrive(lane, scheduler.awaited(lane, step), batches);
      outcome = scheduler.acquire(lane, step, batches, at_once);
    }
    const bool leased = outcome == Scheduler::Outcome::leased;
    copy(batches);
    for (const WeightId weight : leased ? step : Step{}) {
      ++leases_[weight];
    }
    check();
    return leased;
  }

  void release(int lane, const Step& step) {
    const FencePtr used = std::make_shared<Point>(lane);
    for (const WeightId weight : step) {
      for (std::uint64_t at = 0; at < sizes_[weight]; ++at) {
        cells_[scheduler.slots().place(weight) + at].used[lane] = used->order();
      }
      --leases_[weight];
    }
    std::vector<Batch> batches;
    scheduler.release(lane, step, used, batches);
    copy(batches);
    check();
  }

  void end(int lane) {
    std::vector<Batch> batches;
    scheduler.end(lane, batches);
    copy(batches);
  }

  std::uint64_t copied() const { return copied_; }

  Scheduler scheduler;

 private:
  struct Cell {
    WeightId weight = ~0U;
    std::map<int, std::uint64_t> used; // by lane: since it was written
  };

  void copy(const std::vector<Batch>& batches) {
    for (const Batch& batch : batches) {
      ASSERT_FALSE(batch.fetches.empty());
      for (const FencePtr& reader : batch.readers) {
        waited_[reader->channel()] = std::max(waited_[reader->channel()], reader->order());
      }
      for (const Fetch& fetch : batch.fetches) {
        ASSERT_EQ(fetch.bytes, sizes_[fetch.weight]);
        ASSERT_LE(fetch.place + fetch.bytes, cells_.size());
        for (std::uint64_t at = fetch.place; at < fetch.place + fetch.bytes; ++at) {
          for (const auto& [lane, order] : cells_[at].used) {
            ASSERT_LE(order, waited_[lane]) << "overwritten while lane " << lane << " may read it";
          }
          cells_[at] = {fetch.weight, {}};
        }
        copied_ += fetch.bytes;
      }
    }
  }

  void check() {
    for (WeightId weight = 0; weight < sizes_.size(); ++weight) {
      if (leases_[weight] == 0) {
        continue;
      }
      std::vector<FencePtr> readers;
      scheduler.slots().ring().collect_readers(scheduler.slots().place(weight), sizes_[weight], readers);
      ASSERT_TRUE(readers.empty()) << "readers of what was there before have been waited for";
      for (std::uint64_t at = 0; at < sizes_[weight]; ++at) {
        ASSERT_EQ(cells_[scheduler.slots().place(weight) + at].weight, weight)
            << "a leased weight is not where it should be";
      }
    }
    ASSERT_LE(scheduler.slots().bytes_ahead(), cells_.size());
  }

  std::vector<std::uint64_t> sizes_;
  std::vector<Cell> cells_;
  std::vector<std::uint64_t> waited_;
  std::vector<int> leases_;
  std::uint64_t copied_ = 0;
};

TEST(SchedulerProperty, TheSmallestRingServesAnySequence) {
  for (std::uint32_t seed = 0; seed < 300; ++seed) {
    SCOPED_TRACE(seed);
    Dice dice(seed);
    const auto sizes = dice.sizes(dice.from(1, 12), 9);
    const Sequence expected = dice.sequence(dice.from(1, 20), sizes.size(), 4);
    const std::uint64_t ring = largest(sizes, expected);
    Ledger ledger(sizes, ring, dice.from(0, 2 * ring), 1);
    const SequencePtr sequence = share(expected);
    for (int pass = 0; pass < 3; ++pass) {
      ledger.begin(0, sequence);
      for (const Step& step : expected) {
        // Some steps come out of order, some are skipped, some are not known.
        const Step& taken = dice.chance(85) ? step : expected[dice.from(0, expected.size() - 1)];
        if (dice.chance(95)) {
          ASSERT_TRUE(ledger.acquire(0, taken));
          ledger.release(0, taken);
        }
        const Step other = dice.step(sizes.size(), 3);
        if (dice.chance(10) && sum(sizes, other) <= ring) {
          ASSERT_TRUE(ledger.acquire(0, other));
          ledger.release(0, other);
        }
      }
    }
    EXPECT_TRUE(ledger.scheduler.slots().leased().empty());
  }
}

TEST(SchedulerProperty, LeasesThatOverlapNeverLoseTheirPlace) {
  for (std::uint32_t seed = 0; seed < 200; ++seed) {
    SCOPED_TRACE(seed);
    Dice dice(seed);
    const int lanes = static_cast<int>(dice.from(1, 3));
    const auto sizes = dice.sizes(dice.from(2, 12), 9);
    const Sequence steps = dice.sequence(dice.from(1, 20), sizes.size(), 3);
    Ledger ledger(sizes, largest(sizes, steps) * dice.from(1, 4), dice.from(0, 20), lanes);
    for (int lane = 0; lane < lanes; ++lane) {
      ledger.begin(lane, share(dice.chance(50) ? steps : dice.sequence(dice.from(1, 9), sizes.size(), 3)));
    }
    std::vector<std::pair<int, Step>> held;
    for (int i = 0; i < 150; ++i) {
      const int lane = static_cast<int>(dice.from(0, lanes - 1));
      if (dice.chance(5)) {
        ledger.begin(lane, share(steps));
      } else if (dice.chance(2)) {
        ledger.scheduler.abandon();
      } else if (dice.chance(55)) {
        const Step& step = steps[dice.from(0, steps.size() - 1)];
        const auto before = ledger.scheduler.slots().leased();
        if (ledger.acquire(lane, step) || ledger.acquire(lane, step, /*at_once=*/true)) {
          held.emplace_back(lane, step);
        } else {
          ASSERT_EQ(ledger.scheduler.slots().leased(), before);
          ASSERT_FALSE(held.empty()) << "only leases may be in the way";
        }
      } else if (!held.empty()) {
        std::swap(held[dice.from(0, held.size() - 1)], held.back());
        ledger.release(held.back().first, held.back().second);
        held.pop_back();
      }
    }
  }
}

/// Lanes that go on in any order, each as far as it may: what they do until all have ended `calls` calls. Where
/// nobody can go on, one does at once; how often that was.
class CallsInAnyOrder {
 public:
  CallsInAnyOrder(Ledger& ledger, Dice& dice, std::vector<SequencePtr> sequences, int calls)
      : ledger_(ledger), dice_(dice), sequences_(std::move(sequences)), left_(sequences_.size(), calls) {}

  void begin(int lane) {
    ledger_.begin(lane, sequences_[lane]);
    at_[lane] = 0;
  }

  int run() {
    int at_once = 0;
    std::vector<int> stuck;
    while (!at_.empty()) {
      auto next = at_.begin();
      std::advance(next, dice_.from(0, at_.size() - 1));
      const auto [lane, step] = *next;
      const bool all_stuck = stuck.size() == at_.size();
      if (!all_stuck && std::find(stuck.begin(), stuck.end(), lane) != stuck.end()) {
        continue;
      }
      at_once += all_stuck ? 1 : 0;
      if (!ledger_.acquire(lane, (*sequences_[lane])[step], all_stuck)) {
        stuck.push_back(lane);
        EXPECT_FALSE(all_stuck) << "it has no lease, and nobody has";
        continue;
      }
      ledger_.release(lane, (*sequences_[lane])[step]);
      stuck.clear();
      if (++next->second == sequences_[lane]->size()) {
        ledger_.end(lane);
        at_.erase(next);
        if (--left_[lane] > 0) {
          begin(lane);
        }
      }
    }
    return at_once;
  }

 private:
  Ledger& ledger_;
  Dice& dice_;
  std::vector<SequencePtr> sequences_;
  std::vector<int> left_;
  std::map<int, std::size_t> at_; // by lane that is in a call: its next step
};

struct Moved {
  std::uint64_t together; // bytes that were copied and used
  std::uint64_t alone;    // that each call would have had copied for itself
  int lanes;
};

/// Lanes that all begin, and go on in any order, with `calls` each of the same steps.
Moved move_together(std::uint32_t seed, int calls) {
  Dice dice(seed);
  const int lanes = static_cast<int>(dice.from(2, 6));
  const auto sizes = dice.sizes(dice.from(3, 20), 9);
  const SequencePtr sequence = each_once(sizes.size());
  const std::uint64_t all = total(sizes, *sequence);
  const std::uint64_t ring = std::max(largest(sizes, *sequence), dice.from(1, all));
  Ledger ledger(sizes, ring, dice.from(0, ring), lanes);
  CallsInAnyOrder callers(ledger, dice, std::vector<SequencePtr>(lanes, sequence), calls);
  for (int lane = 0; lane < lanes; ++lane) {
    callers.begin(lane);
  }
  EXPECT_EQ(callers.run(), 0) << "somebody can always go on";
  return {ledger.copied() - ledger.scheduler.slots().bytes_ahead(), all * lanes * calls, lanes};
}

TEST(SchedulerProperty, CallsThatBeginTogetherBringEachWeightOnce) {
  for (std::uint32_t seed = 0; seed < 300; ++seed) {
    SCOPED_TRACE(seed);
    const Moved moved = move_together(seed, 1);
    EXPECT_EQ(moved.together * moved.lanes, moved.alone);
  }
}

TEST(SchedulerProperty, CallsThatEndAndBeginInAnyOrderShareMost) {
  std::uint64_t together = 0;
  std::uint64_t alone = 0;
  for (std::uint32_t seed = 0; seed < 300; ++seed) {
    SCOPED_TRACE(seed);
    const Moved moved = move_together(seed, 5);
    EXPECT_LE(moved.together, moved.alone);
    together += moved.together;
    alone += moved.alone;
  }
  EXPECT_LT(together * 2, alone);
}

TEST(SchedulerProperty, CallsThatDifferAreAllServed) {
  for (std::uint32_t seed = 0; seed < 300; ++seed) {
    SCOPED_TRACE(seed);
    Dice dice(seed);
    const int lanes = static_cast<int>(dice.from(2, 5));
    const auto sizes = dice.sizes(dice.from(3, 20), 9);
    std::vector<SequencePtr> sequences;
    std::uint64_t ring = 0;
    for (int lane = 0; lane < lanes; ++lane) {
      const bool as_before = lane > 0 && dice.chance(40);
      sequences.push_back(as_before ? sequences[lane - 1] : share(dice.sequence(dice.from(1, 20), sizes.size(), 3)));
      ring = std::max(ring, largest(sizes, *sequences.back()));
    }
    Ledger ledger(sizes, ring * dice.from(1, 4), dice.from(0, ring), lanes);
    CallsInAnyOrder callers(ledger, dice, sequences, 4);
    for (int lane = 0; lane < lanes; ++lane) {
      callers.begin(lane);
    }
    callers.run();
    EXPECT_TRUE(ledger.scheduler.slots().leased().empty());
  }
}

TEST(SchedulerProperty, SteadyPassesCopyEachUseOnceAndMissNothing) {
  for (std::uint32_t seed = 0; seed < 200; ++seed) {
    SCOPED_TRACE(seed);
    Dice dice(seed);
    const auto sizes = dice.sizes(dice.from(4, 20), 9);
    const SequencePtr sequence = each_once(sizes.size());
    const std::uint64_t all = total(sizes, *sequence);
    const std::uint64_t ring = std::max(largest(sizes, *sequence), dice.from(1, all / 2));
    Ledger ledger(sizes, ring, dice.from(0, ring), 1);
    std::uint64_t used = 0;
    for (int pass = 0; pass < 4; ++pass) {
      ledger.begin(0, sequence);
      for (const Step& step : *sequence) {
        ASSERT_TRUE(ledger.acquire(0, step));
        ledger.release(0, step);
      }
      const std::uint64_t now = ledger.copied() - ledger.scheduler.slots().bytes_ahead();
      EXPECT_EQ(now - used, all);
      used = now;
    }
    EXPECT_EQ(ledger.scheduler.misses(), 0U);
  }
}

} // namespace
} // namespace offload::test
