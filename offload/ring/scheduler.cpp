#include <offload/ring/scheduler.h>

#include <algorithm>
#include <cassert>

namespace offload {

Scheduler::Scheduler(std::vector<std::uint64_t> bytes, std::uint64_t ring_bytes, std::uint64_t batch_bytes, int lanes)
    : bytes_(std::move(bytes)),
      ring_(ring_bytes),
      gatherer_(std::min(batch_bytes, ring_bytes / 4), lanes),
      slots_(bytes_.size()),
      windows_(lanes) {}

std::uint64_t Scheduler::bytes_of(const Step& step) const {
  std::uint64_t total = 0;
  for (const WeightId weight : step) {
    total += bytes_[weight];
  }
  return total;
}

std::uint64_t Scheduler::bytes_of(const std::vector<Fetch>& fetches) {
  std::uint64_t total = 0;
  for (const Fetch& fetch : fetches) {
    total += fetch.bytes;
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
  if (window.sequence) {
    for (const Step& step : *window.sequence) {
      window.total += bytes_of(step);
    }
  }
  claim_what_is_here(window);
  while (!before.claims_nothing()) {
    drop_last_claim(before);
  }
}

void Scheduler::abandon() {
  for (Window& window : windows_) {
    while (!window.claims_nothing()) {
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
  fetched_ -= bytes_of(fetches);
}

void Scheduler::free_if_idle(WeightId weight) {
  auto& slot = slots_[weight];
  if (slot && slot->claims == 0 && slot->leases == 0) {
    ring_.free(slot->place, bytes_[weight], slot->readers);
    slot.reset();
  }
}

void Scheduler::note_claim(Window& window, WeightId weight) {
  ++slots_[weight]->claims;
  window.ahead += bytes_[weight];
  if (++window.part == window.at(window.head).size()) {
    ++window.head;
    window.part = 0;
  }
}

void Scheduler::forget_claim(Window& window, WeightId weight) {
  --slots_[weight]->claims;
  window.ahead -= bytes_[weight];
  free_if_idle(weight);
}

/// Moves the end of the window to before its last weight, which is returned.
WeightId Scheduler::step_back(Window& window) {
  if (window.part == 0) {
    --window.head;
    window.part = window.at(window.head).size();
  }
  --window.part;
  return window.at(window.head)[window.part];
}

void Scheduler::drop_last_claim(Window& window) { forget_claim(window, step_back(window)); }

/// Drops the claim that is needed last, as far as that can be said across lanes: the last one of the longest window.
bool Scheduler::drop_farthest_claim() {
  const auto longest = std::max_element(windows_.begin(), windows_.end(), [](const Window& a, const Window& b) {
    return std::pair(a.head - a.cursor, a.part) < std::pair(b.head - b.cursor, b.part);
  });
  if (longest == windows_.end() || longest->claims_nothing()) {
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

/// Hands fetches out in batches.
void Scheduler::commit(const std::vector<Fetch>& fetches, std::vector<Batch>& out) {
  const auto before = static_cast<std::ptrdiff_t>(out.size());
  gatherer_.gather(fetches, ring_, out);
  for (auto batch = out.begin() + before; batch != out.end(); ++batch) {
    for (const Fetch& fetch : batch->fetches) {
      slots_[fetch.weight]->arrival = batch->arrival;
      fetched_ += fetch.bytes;
    }
  }
}

/// Claims what is left of the step at the head of the window. False, and nothing changed, when it finds no place.
bool Scheduler::claim_step(Window& window, std::vector<Fetch>& fetches) {
  const Step& step = window.at(window.head);
  Step missing;
  std::copy_if(step.begin() + static_cast<std::ptrdiff_t>(window.part), step.end(), std::back_inserter(missing),
               [&](WeightId weight) { return !slots_[weight].has_value(); });
  if (!allocate(missing, fetches)) {
    return false;
  }
  for (std::size_t i = window.part; i < step.size(); ++i) {
    note_claim(window, step[i]);
  }
  return true;
}

/// Claims the next weight alone.
bool Scheduler::claim_weight(Window& window, std::vector<Fetch>& fetches) {
  const WeightId weight = window.at(window.head)[window.part];
  if (!slots_[weight] && !allocate({weight}, fetches)) {
    return false;
  }
  note_claim(window, weight);
  return true;
}

void Scheduler::claim_what_is_here(Window& window) {
  while (window.head < window.limit()) {
    const WeightId weight = window.at(window.head)[window.part];
    if (!slots_[weight]) {
      return;
    }
    note_claim(window, weight);
  }
}

void Scheduler::prefetch(int lane, std::vector<Batch>& out) {
  Window& window = windows_[lane];
  while (true) {
    claim_what_is_here(window);
    // A lane with nothing ahead gets its next step at once; otherwise copies wait until they can travel together.
    const bool nothing_ahead = starved(lane);
    const std::uint64_t wanted = nothing_ahead ? 1 : gatherer_.batch_bytes();
    const std::uint64_t rest = window.total - std::min(window.total, window.ahead);
    if (!nothing_ahead && rest > wanted && (ring_.bytes_free() < wanted || window.ahead + wanted > share())) {
      return; // as the attempt would find, step by step
    }
    const std::pair<std::uint64_t, std::size_t> end(window.head, window.part);
    const std::uint64_t ring_cursor = ring_.cursor();
    std::vector<Fetch> fetches;
    std::uint64_t gathered = 0;
    while (gathered < wanted && window.head < window.limit()) {
      if (window.part == 0 && window.head % window.sequence->size() == 0) {
        ring_.set_cursor(0); // each pass places what it brings as the last one did
      }
      const std::uint64_t step_bytes = bytes_of(window.at(window.head));
      const bool over_share = !nothing_ahead && window.ahead + step_bytes > share();
      if (over_share || !claim_step(window, fetches)) {
        while (nothing_ahead && window.head < window.limit() && claim_weight(window, fetches)) {
        }
        break;
      }
      gathered = bytes_of(fetches);
    }
    gathered = bytes_of(fetches);
    const bool enough = gathered >= wanted || window.head == window.limit();
    if (!enough) {
      while (std::pair(window.head, window.part) != end) {
        const WeightId weight = step_back(window);
        --slots_[weight]->claims;
        window.ahead -= bytes_[weight];
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
      pass_over(window);
    }
    return true;
  }
  return false;
}

/// Drops the claims of the step at the cursor, which is about to move on.
void Scheduler::pass_over(Window& window) {
  const Step& step = window.at(window.cursor);
  const std::size_t claimed = window.head > window.cursor ? step.size() : window.part;
  for (std::size_t i = 0; i < claimed; ++i) {
    forget_claim(window, step[i]);
  }
  if (window.head == window.cursor) {
    ++window.head;
    window.part = 0;
  }
}

bool Scheduler::acquire(int lane, const Step& step, std::vector<Batch>& out) {
  Window& window = windows_[lane];
  const bool expected = follow(window, step);
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
    pass_over(window);
    ++window.cursor;
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
      window.part = 0;
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
  keep_latest(slot.readers, std::move(used));
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

std::vector<std::uint64_t> Scheduler::layout() const {
  std::vector<std::uint64_t> layout = {ring_.cursor()};
  for (const auto& slot : slots_) {
    layout.push_back(slot ? slot->place : ~0ULL);
    layout.push_back(slot ? 2 * static_cast<std::uint64_t>(slot->claims) + (slot->fresh ? 1 : 0) : 0);
  }
  for (const Window& window : windows_) {
    const std::uint64_t steps = window.empty() ? 1 : window.sequence->size();
    layout.insert(layout.end(), {window.cursor % steps, window.head - window.cursor, window.part});
  }
  return layout;
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
