#include <offload/ring/scheduler.h>

namespace offload {

void Scheduler::abandon() {
  prefetcher_.drop_all_claims();
  slots_.mark_failed();
}

bool Scheduler::acquire(int lane, const Step& step, std::vector<Batch>& out) {
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
  if (expected) {
    prefetcher_.step_on(lane);
  }
  if (!make_room(step, missing, transaction)) {
    if (expected) {
      prefetcher_.step_back(lane);
    }
    return false;
  }
  transaction.commit(out);
  misses_ += missing.size() + slots_.refetch(step, out);
  return true;
}

/// Gives what is `missing` of `step` places and leases, for which other claims have to go.
bool Scheduler::make_room(const Step& step, Step missing, SlotTable::Transaction& transaction) {
  const auto place = [&] {
    while (!transaction.place(missing)) {
      if (!prefetcher_.drop_farthest_claim()) {
        return false;
      }
    }
    return true;
  };
  if (!place()) {
    // Only leases are left. Those of this very step may lie in the way of the rest: it is placed anew as a whole.
    const std::size_t before = missing.size();
    for (const WeightId weight : step) {
      if (slots_.has_place(weight) && transaction.displace(weight)) {
        missing.push_back(weight);
      }
    }
    if (missing.size() == before || !place()) {
      return false;
    }
  }
  for (const WeightId weight : missing) {
    transaction.lease(weight);
  }
  return true;
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
