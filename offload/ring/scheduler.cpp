#include <offload/ring/scheduler.h>

#include <algorithm>
#include <utility>

namespace offload {

/// Those who wait for others are to look again.
void Scheduler::note_change() {
  for (Lane& lane : lanes_) {
    lane.waits = false;
  }
}

/// True when every lane in a call waits for others.
bool Scheduler::nobody_goes_on() const {
  return std::all_of(lanes_.begin(), lanes_.end(), [](const Lane& lane) { return !lane.in_call || lane.waits; });
}

/// True when every lane that holds leases waits for others to give theirs back.
bool Scheduler::nobody_will_release() const {
  return std::all_of(lanes_.begin(), lanes_.end(), [](const Lane& lane) { return lane.leases == 0 || lane.waits; });
}

void Scheduler::prefetch(int lane, std::vector<Batch>& out) {
  const std::size_t handed_out = out.size();
  prefetcher_.prefetch(lane, out);
  if (out.size() > handed_out) {
    note_change(); // what others wait for may have a place now
  }
}

void Scheduler::begin(int lane, std::shared_ptr<const Sequence> sequence, std::vector<Batch>& out, WeightId module,
                      Priority priority) {
  prefetcher_.begin(lane, std::move(sequence), module, priority);
  lanes_[lane].in_call = true;
  prefetch(lane, out);
}

void Scheduler::end(int lane, std::vector<Batch>& out) {
  prefetcher_.end(lane);
  lanes_[lane].in_call = false;
  note_change();
  prefetch(lane, out); // of the next pass, where this was the last call of its own
}

void Scheduler::expect(int lane, std::shared_ptr<const Sequence> sequence, std::vector<Batch>& out, WeightId module) {
  prefetcher_.expect(lane, std::move(sequence), module);
  prefetch(lane, out);
}

void Scheduler::abandon() {
  prefetcher_.drop_all_claims();
  slots_.mark_failed();
}

Scheduler::Outcome Scheduler::acquire(int lane, const Step& step, std::vector<Batch>& out, bool at_once) {
  const std::size_t handed_out = out.size();
  Outcome outcome = lease(lane, step, out, at_once);
  lanes_[lane].waits = outcome == Outcome::waits_for_calls;
  if (lanes_[lane].waits && nobody_goes_on()) {
    outcome = lease(lane, step, out, true);
    outcome = outcome != Outcome::leased && nobody_will_release() ? Outcome::refused : outcome;
    lanes_[lane].waits = outcome == Outcome::waits_for_calls;
  }
  if (outcome == Outcome::leased) {
    lanes_[lane].leases += step.size();
    if (prefetcher_.starved(lane)) {
      prefetcher_.prefetch(lane, out); // what fits beside the step that is in use now
    }
    if (out.size() > handed_out) {
      note_change();
    }
  }
  return outcome;
}

Scheduler::Outcome Scheduler::lease(int lane, const Step& step, std::vector<Batch>& out, bool at_once) {
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
    prefetcher_.drop_door_claims();
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

void Scheduler::arrive(int lane, const ArrivalPtr& last, std::vector<Batch>& out) {
  prefetcher_.note_arrived(last);
  prefetch(lane, out);
  note_change();
}

void Scheduler::release(int lane, const Step& step, const FencePtr& used, std::vector<Batch>& out) {
  for (const WeightId weight : step) {
    prefetcher_.claim_placed(lane);
    slots_.release(weight, used);
  }
  lanes_[lane].leases -= step.size();
  note_change();
  prefetch(lane, out);
}

std::vector<std::uint64_t> Scheduler::layout() const {
  std::vector<std::uint64_t> layout;
  slots_.append_layout(layout);
  prefetcher_.append_layout(layout);
  return layout;
}

} // namespace offload
