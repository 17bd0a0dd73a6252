#include <offload/ring/scheduler.h>

namespace offload {

void Scheduler::abandon() {
  prefetcher_.drop_all_claims();
  slots_.mark_failed();
}

Scheduler::Outcome Scheduler::acquire(int lane, const Step& step, std::vector<Batch>& out, bool at_once) {
  const bool expected = prefetcher_.follow(lane, step);
  SlotTable::Transaction transaction(slots_);
  Step missing;
  for (const WeightId weight : step) {
    if (slots_.has_place(weight)) {
      transaction.lease(weight);
    } else {
      missing.push_back(weight);
    }
  }
  if (const Outcome outcome = make_room(lane, step, missing, transaction, at_once); outcome != Outcome::leased) {
    if (outcome == Outcome::waits_for_calls) {
      prefetcher_.note_no_room(lane, expected);
    }
    return outcome;
  }
  prefetcher_.note_room(lane);
  if (!missing.empty()) {
    prefetcher_.claim_placed_for_all(); // of this pass, before the place is given up again
  }
  if (expected) {
    prefetcher_.step_on(lane);
  }
  const std::size_t handed_out = out.size();
  transaction.commit(out);
  prefetcher_.note_handed_out(lane, out, handed_out);
  misses_ += missing.size() + slots_.refetch(step, out);
  return Outcome::leased;
}

/// Gives what is `missing` of `step` places and leases, for which other claims have to go.
Scheduler::Outcome Scheduler::make_room(int lane, const Step& step, Step missing, SlotTable::Transaction& transaction,
                                        bool at_once) {
  if (!missing.empty() && !at_once) {
    const std::uint64_t bytes = slots_.bytes(missing);
    if (prefetcher_.comes_after_others(lane)) {
      return Outcome::waits_for_calls;
    }
    if (prefetcher_.awaited(lane, bytes)) {
      return Outcome::waits_for_copies;
    }
  }
  const auto place = [&] {
    while (!transaction.place(missing)) {
      if (!prefetcher_.drop_farthest_claim(lane, at_once)) {
        return false;
      }
    }
    return true;
  };
  if (!place()) {
    if (!at_once && prefetcher_.has_others(lane)) {
      return Outcome::waits_for_calls;
    }
    // Only leases are left. Those of this very step may lie in the way of the rest: it is placed anew as a whole.
    const std::size_t before = missing.size();
    for (const WeightId weight : step) {
      if (slots_.has_place(weight) && transaction.displace(weight)) {
        missing.push_back(weight);
      }
    }
    if (missing.size() == before || !place()) {
      return Outcome::waits_for_calls;
    }
  }
  for (const WeightId weight : missing) {
    transaction.lease(weight);
  }
  return Outcome::leased;
}

ArrivalPtr Scheduler::awaited(int lane, const Step& step) const {
  std::uint64_t bytes = 0;
  for (const WeightId weight : step) {
    bytes += slots_.has_place(weight) ? 0 : slots_.bytes(weight);
  }
  return bytes == 0 ? nullptr : prefetcher_.awaited(lane, bytes);
}

void Scheduler::release(int lane, WeightId weight, FencePtr used) {
  prefetcher_.claim_placed(lane);
  slots_.release(weight, std::move(used));
}

std::vector<std::uint64_t> Scheduler::layout() const {
  std::vector<std::uint64_t> layout;
  slots_.append_layout(layout);
  prefetcher_.append_layout(layout);
  return layout;
}

} // namespace offload
