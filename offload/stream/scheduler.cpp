#include <offload/stream/scheduler.h>

#include <algorithm>
#include <cassert>

namespace offload {

Scheduler::Scheduler(std::vector<std::uint64_t> bytes, std::uint64_t ring_bytes, std::uint64_t batch_bytes, int lanes)
    : bytes_(std::move(bytes)),
      ring_(ring_bytes),
      batch_bytes_(std::min(batch_bytes, ring_bytes / 4)),
      slots_(bytes_.size()),
      windows_(lanes),
      waited_(lanes) {}

std::uint64_t Scheduler::bytes_of(const Step& step) const {
  std::uint64_t total = 0;
  for (const WeightId weight : step) {
    total += bytes_[weight];
  }
  return total;
}

/// Bytes that one lane may look ahead.
std::uint64_t Scheduler::share() const {
  const auto active = std::count_if(windows_.begin(), windows_.end(), [](const Window& w) { return w.active; });
  return ring_.bytes() / std::max<std::uint64_t>(active, 1);
}

void Scheduler::set_active(int lane, bool active) { windows_[lane].active = active; }

void Scheduler::expect(int lane, std::shared_ptr<const Sequence> sequence) {
  Window& window = windows_[lane];
  if (window.sequence == sequence && !window.empty() && window.cursor % sequence->size() == 0) {
    return;
  }
  // The new claims are made before the old ones go, so that what is on its way for both is not copied twice.
  Window before = std::move(window);
  window = Window{};
  window.active = before.active;
  window.sequence = std::move(sequence);
  claim_what_is_here(window);
  while (before.head > before.cursor) {
    drop_last_claim(before);
  }
}

void Scheduler::abandon() {
  for (Window& window : windows_) {
    while (window.head > window.cursor) {
      drop_last_claim(window);
    }
  }
  for (auto& slot : slots_) {
    if (slot && slot->arrival->issued.load(std::memory_order_acquire) && !slot->arrival->failure.empty()) {
      slot->failed = true;
    }
  }
}

/// Copies again what failed, into the same place: nobody has read there, since whoever leased it was told.
void Scheduler::fetch_what_failed(const Step& step, std::vector<Batch>& out) {
  std::vector<Fetch> fetches;
  for (const WeightId weight : step) {
    if (slots_[weight]->failed) {
      slots_[weight]->failed = false;
      fetches.push_back({weight, slots_[weight]->place, bytes_[weight]});
    }
  }
  misses_ += fetches.size();
  commit(fetches, out);
}

void Scheduler::free_if_idle(WeightId weight) {
  auto& slot = slots_[weight];
  if (slot && slot->claims == 0 && slot->leases == 0) {
    ring_.free(slot->place, bytes_[weight], slot->readers);
    slot.reset();
  }
}

void Scheduler::unclaim(const Step& step) {
  for (const WeightId weight : step) {
    --slots_[weight]->claims;
    free_if_idle(weight);
  }
}

void Scheduler::drop_last_claim(Window& window) {
  --window.head;
  const Step& step = window.at(window.head);
  window.ahead -= bytes_of(step);
  unclaim(step);
}

/// Drops the claim that is needed last, as far as that can be said across lanes: the last one of the longest window.
bool Scheduler::drop_farthest_claim() {
  const auto longest = std::max_element(windows_.begin(), windows_.end(), [](const Window& a, const Window& b) {
    return a.head - a.cursor < b.head - b.cursor;
  });
  if (longest == windows_.end() || longest->head == longest->cursor) {
    return false;
  }
  drop_last_claim(*longest);
  return true;
}

/// Gives each of `weights` a place: all in one piece, so that a ring that is free always does for a step that fits it,
/// else wherever there is room. False, and nothing changed, when there is not.
bool Scheduler::allocate(const Step& weights, std::vector<Fetch>& fetches) {
  const std::uint64_t cursor = ring_.cursor();
  std::vector<Fetch> added;
  auto whole = weights.empty() ? std::nullopt : ring_.allocate(bytes_of(weights));
  for (const WeightId weight : weights) {
    const auto place = whole ? whole : ring_.allocate(bytes_[weight]);
    if (!place) {
      roll_back(added, cursor);
      return false;
    }
    slots_[weight].emplace(Slot{*place, nullptr, 0, 0, true, false, {}});
    added.push_back({weight, *place, bytes_[weight]});
    if (whole) {
      *whole += bytes_[weight];
    }
  }
  fetches.insert(fetches.end(), added.begin(), added.end());
  return true;
}

/// Undoes allocations that have not been committed: nothing was written there, so the readers of before still count.
void Scheduler::roll_back(std::vector<Fetch>& fetches, std::uint64_t ring_cursor) {
  for (const Fetch& fetch : fetches) {
    slots_[fetch.weight].reset();
    ring_.free(fetch.place, fetch.bytes, {});
  }
  fetches.clear();
  ring_.set_cursor(ring_cursor);
}

/// Hands fetches out in batches. A fetch that is large by itself travels alone, so that what is before it need not
/// wait.
void Scheduler::commit(const std::vector<Fetch>& fetches, std::vector<Batch>& out) {
  std::uint64_t gathered = batch_bytes_;
  for (const Fetch& fetch : fetches) {
    if (gathered >= batch_bytes_ || fetch.bytes >= batch_bytes_) {
      out.push_back({{}, {}, std::make_shared<Arrival>()});
      gathered = 0;
    }
    Batch& batch = out.back();
    batch.fetches.push_back(fetch);
    gathered += fetch.bytes;
    slots_[fetch.weight]->arrival = batch.arrival;

    std::vector<FencePtr> readers;
    ring_.collect_readers(fetch.place, fetch.bytes, readers);
    ring_.forget_readers(fetch.place, fetch.bytes);
    for (FencePtr& reader : readers) {
      // Copies are in order: what an earlier batch has waited for, a later one need not. Of one lane, the latest will
      // do.
      std::uint64_t& waited = waited_[reader->lane()];
      if (reader->order() <= waited) {
        continue;
      }
      waited = reader->order();
      const auto same_lane = std::find_if(batch.readers.begin(), batch.readers.end(),
                                          [&](const FencePtr& other) { return other->lane() == reader->lane(); });
      if (same_lane == batch.readers.end()) {
        batch.readers.push_back(std::move(reader));
      } else {
        *same_lane = std::move(reader);
      }
    }
  }
}

/// Claims the step at the head of the window. False, and nothing changed, when its weights find no place.
bool Scheduler::claim_next(Window& window, std::vector<Fetch>& fetches) {
  const Step& step = window.at(window.head);
  Step missing;
  std::copy_if(step.begin(), step.end(), std::back_inserter(missing),
               [&](WeightId weight) { return !slots_[weight].has_value(); });
  if (!allocate(missing, fetches)) {
    return false;
  }
  for (const WeightId weight : step) {
    ++slots_[weight]->claims;
  }
  ++window.head;
  window.ahead += bytes_of(step);
  return true;
}

void Scheduler::claim_what_is_here(Window& window) {
  std::vector<Fetch> none;
  while (window.head < window.limit()) {
    const Step& step = window.at(window.head);
    if (!std::all_of(step.begin(), step.end(), [&](WeightId weight) { return slots_[weight].has_value(); })) {
      return;
    }
    claim_next(window, none);
  }
}

void Scheduler::prefetch(int lane, std::vector<Batch>& out) {
  Window& window = windows_[lane];
  while (true) {
    claim_what_is_here(window);
    // A lane with nothing ahead gets its next step at once; otherwise copies wait until they can travel together.
    const bool starved = window.head == window.cursor;
    const std::uint64_t wanted = starved ? 1 : batch_bytes_;
    const std::uint64_t head = window.head;
    const std::uint64_t ring_cursor = ring_.cursor();
    std::vector<Fetch> fetches;
    std::uint64_t gathered = 0;
    bool blocked = false;
    while (gathered < wanted && window.head < window.limit()) {
      const std::uint64_t step_bytes = bytes_of(window.at(window.head));
      const bool over_share = !starved && window.ahead + step_bytes > share();
      if (over_share || !claim_next(window, fetches)) {
        blocked = true;
        break;
      }
      gathered = 0;
      for (const Fetch& fetch : fetches) {
        gathered += fetch.bytes;
      }
    }
    if (blocked && gathered < wanted) {
      while (window.head > head) {
        --window.head;
        const Step& step = window.at(window.head);
        window.ahead -= bytes_of(step);
        for (const WeightId weight : step) {
          --slots_[weight]->claims;
        }
      }
      roll_back(fetches, ring_cursor);
      return;
    }
    if (fetches.empty()) {
      return;
    }
    commit(fetches, out);
  }
}

/// Moves the cursor of `window` to the next place in its sequence where `step` stands, and drops the claims in between.
/// False when it stands nowhere.
bool Scheduler::follow(Window& window, const Step& step) {
  for (std::uint64_t at = window.cursor; at < window.limit(); ++at) {
    if (window.at(at) != step) {
      continue;
    }
    for (; window.cursor < at; ++window.cursor) {
      if (window.cursor < window.head) {
        window.ahead -= bytes_of(window.at(window.cursor));
        unclaim(window.at(window.cursor));
      }
    }
    window.head = std::max(window.head, window.cursor);
    return true;
  }
  return false;
}

bool Scheduler::acquire(int lane, const Step& step, std::vector<Batch>& out) {
  Window& window = windows_[lane];
  const bool expected = follow(window, step);
  const bool claimed = expected && window.head > window.cursor;
  Step missing;
  for (const WeightId weight : step) {
    if (slots_[weight]) {
      ++slots_[weight]->leases;
      slots_[weight]->fresh = false;
    } else {
      missing.push_back(weight);
    }
  }
  if (expected) {
    if (claimed) {
      window.ahead -= bytes_of(step);
      unclaim(step);
    }
    ++window.cursor;
    window.head = std::max(window.head, window.cursor);
  }
  if (missing.empty()) {
    fetch_what_failed(step, out);
    return true;
  }

  const std::size_t missed = missing.size();
  std::vector<Fetch> fetches;
  bool moved = false;
  while (!allocate(missing, fetches)) {
    if (drop_farthest_claim()) {
      continue;
    }
    // Only leases are left. Those of this very step may lie in the way of the rest: place the whole step anew.
    if (!moved) {
      moved = true;
      for (const WeightId weight : step) {
        if (slots_[weight] && slots_[weight]->leases == 1 && slots_[weight]->claims == 0) {
          slots_[weight]->leases = 0;
          free_if_idle(weight);
          missing.push_back(weight);
        }
      }
      if (missing.size() > missed) {
        continue;
      }
    }
    for (const WeightId weight : step) {
      if (slots_[weight]) {
        --slots_[weight]->leases;
        free_if_idle(weight);
      }
    }
    if (expected) {
      --window.cursor;
      window.head = window.cursor;
    }
    return false;
  }
  commit(fetches, out);
  for (const WeightId weight : missing) {
    slots_[weight]->leases = 1;
    slots_[weight]->fresh = false;
  }
  misses_ += missed;
  fetch_what_failed(step, out);
  return true;
}

void Scheduler::release(int lane, WeightId weight, FencePtr used) {
  Slot& slot = *slots_[weight];
  --slot.leases;
  const auto same_lane = [&](const FencePtr& reader) { return reader->lane() == used->lane(); };
  const auto reader = std::find_if(slot.readers.begin(), slot.readers.end(), same_lane);
  if (reader == slot.readers.end()) {
    slot.readers.push_back(std::move(used));
  } else {
    *reader = std::move(used);
  }
  claim_what_is_here(windows_[lane]);
  free_if_idle(weight);
}

std::uint64_t Scheduler::bytes_ahead() const {
  std::uint64_t total = 0;
  for (WeightId weight = 0; weight < slots_.size(); ++weight) {
    total += slots_[weight] && slots_[weight]->fresh ? bytes_[weight] : 0;
  }
  return total;
}

std::vector<WeightId> Scheduler::leased() const {
  std::vector<WeightId> weights;
  for (WeightId weight = 0; weight < slots_.size(); ++weight) {
    if (slots_[weight] && slots_[weight]->leases > 0) {
      weights.push_back(weight);
    }
  }
  return weights;
}

} // namespace offload
