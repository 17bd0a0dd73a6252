#include <offload/ring/prefetcher.h>

#include <algorithm>
#include <iterator>
#include <utility>

namespace offload {

/// The part of the ring that calls of one kind get beside others: the most urgent of them counts.
std::uint64_t Prefetcher::weight_of(const Window& kind) const {
  Priority most = kind.priority;
  for (const Window& window : windows_) {
    most = window.active && window.kind == kind.kind ? std::max(most, window.priority) : most;
  }
  return most == Priority::high ? 9 : most == Priority::normal ? 3 : 1;
}

/// Bytes that a lane with this window may look ahead: calls of one kind look at the same.
std::uint64_t Prefetcher::share(const Window& of) const {
  const std::uint64_t own = weight_of(of);
  std::uint64_t all = own;
  for (auto window = windows_.begin(); window != windows_.end(); ++window) {
    const bool is_new = std::none_of(windows_.begin(), window, [&](const Window& earlier) {
      return earlier.active && earlier.kind == window->kind;
    });
    const bool streams = window->active && !window->empty();
    all += streams && is_new && window->kind != of.kind ? weight_of(*window) : 0;
  }
  return slots_.ring().bytes() * own / all;
}

void Prefetcher::expect(int lane, std::shared_ptr<const Sequence> sequence, WeightId module) {
  Window& window = windows_[lane];
  if (window.sequence == sequence && !window.empty() && window.cursor % sequence->size() == 0) {
    return;
  }
  // The new claims are made before the old ones go, so that what is on its way for both is not copied twice.
  Window before = std::exchange(window, Window{});
  window.active = before.active;
  window.module = module;
  window.pass = before.module == module ? before.pass : 0;
  window.sequence = std::move(sequence);
  if (window.sequence) {
    for (const Step& step : *window.sequence) {
      window.total += slots_.bytes(step);
      for (const WeightId weight : step) {
        window.kind = window.kind * 31 + weight + 1;
      }
    }
  }
  claim_placed(lane);
  while (!before.claims_nothing()) {
    drop_last_claim(before);
  }
}

void Prefetcher::begin(int lane, std::shared_ptr<const Sequence> sequence, WeightId module, Priority priority) {
  Window& window = windows_[lane];
  Passes& passes = passes_[module];
  expect(lane, std::move(sequence), module);
  window.active = true;
  window.priority = priority;
  window.first = window.cursor;
  window.need = 0;
  bool open = true;
  for (std::uint64_t at = window.cursor; at < window.limit(); ++at) {
    for (const WeightId weight : window.at(at)) {
      open = open && (had_[weight] != passes.newest || slots_.has_place(weight));
    }
  }
  if (!open) {
    ++passes.newest;
    drop_door_claims_of(module);
  }
  window.pass = passes.newest;
  if (!window.empty()) {
    counts_.passes += passes.joined != passes.newest ? 1 : 0;
    ++counts_.calls;
    passes.joined = passes.newest;
  }
  note_had(lane, window.first);
}

void Prefetcher::end(int lane) {
  windows_[lane].active = false;
  windows_[lane].need = 0;
}

/// What is claimed from step `from` on has been had in its pass.
void Prefetcher::note_had(int lane, std::uint64_t from) {
  const Window& window = windows_[lane];
  if (!window.active) {
    return;
  }
  std::uint64_t& newest = passes_[window.module].newest;
  const bool keeps = shares(lane) && !comes_after_others(lane); // who come first need the room
  for (std::uint64_t at = from; !window.empty() && at <= window.head; ++at) {
    const std::uint64_t pass = window.pass + (at - window.first) / window.sequence->size();
    const Step& step = window.at(at);
    const auto end = at < window.head ? step.end() : step.begin() + static_cast<std::ptrdiff_t>(window.part);
    std::for_each(step.begin(), end, [&](WeightId weight) {
      if (pass > newest) {
        newest = pass;
        drop_door_claims_of(window.module);
      }
      if (pass > had_[weight]) {
        had_[weight] = pass;
        if (keeps && pass == newest) {
          slots_.claim(weight);
          door_.push_back({window.module, weight});
        }
      }
    });
  }
}

void Prefetcher::drop_door_claims() {
  for (const Kept& kept : std::exchange(door_, {})) {
    slots_.drop_claim(kept.weight);
  }
}

void Prefetcher::drop_door_claims_of(WeightId module) {
  const auto others =
      std::partition(door_.begin(), door_.end(), [&](const Kept& kept) { return kept.module == module; });
  std::for_each(door_.begin(), others, [&](const Kept& kept) { slots_.drop_claim(kept.weight); });
  door_.erase(door_.begin(), others);
}

/// Gives up what is kept for calls that may join. False when that makes no room.
bool Prefetcher::close_door() {
  if (std::none_of(door_.begin(), door_.end(),
                   [&](const Kept& kept) { return slots_.has_only_one_claim(kept.weight); })) {
    return false;
  }
  drop_door_claims();
  return true;
}

bool Prefetcher::has_others(int lane) const {
  for (int other = 0; other < static_cast<int>(windows_.size()); ++other) {
    if (other != lane && windows_[other].active) {
      return true;
    }
  }
  return false;
}

bool Prefetcher::shares(int lane) const {
  for (const Window& other : windows_) {
    const bool has_shared =
        other.module == windows_[lane].module && other.pass > 0 && other.pass + 1 >= windows_[lane].pass;
    if (&other != &windows_[lane] && (other.active || has_shared)) {
      return true;
    }
  }
  return false;
}

/// True when an earlier pass of its module has something to bring.
bool Prefetcher::is_behind(const Window& window) const {
  return std::any_of(windows_.begin(), windows_.end(), [&](const Window& other) {
    return &other != &window && other.active && other.module == window.module && other.fetches() &&
           other.pass < window.pass_of_head();
  });
}

bool Prefetcher::comes_after_others(int lane) const {
  const Window& window = windows_[lane];
  if ((!window.active && has_others(lane)) || is_behind(window)) {
    return true;
  }
  return std::any_of(windows_.begin(), windows_.end(), [&](const Window& other) {
    const bool needs = other.active && other.need > 0 && (window.need == 0 || other.need < window.need);
    return &other != &window && needs &&
           (other.module == window.module ? other.pass <= window.pass : !is_behind(other));
  });
}

ArrivalPtr Prefetcher::awaited(int lane, std::uint64_t bytes) const {
  const bool rests = !windows_[lane].active && !has_others(lane);
  return shares(lane) && !rests ? under_way_.before(bytes, windows_[lane].kind, share(windows_[lane])) : nullptr;
}

/// Others bring what it wants if they have not come so far yet.
void Prefetcher::note_no_room(int lane, bool expected) {
  Window& window = windows_[lane];
  const bool comes_with_others = expected && std::any_of(windows_.begin(), windows_.end(), [&](const Window& other) {
                                   return &other != &window && other.active && other.module == window.module &&
                                          other.pass <= window.pass && other.kind == window.kind &&
                                          other.head - other.first <= window.cursor - window.first;
                                 });
  if (!comes_with_others && window.need == 0) {
    window.need = ++needs_;
  }
}

/// Its next weight has been claimed.
void Prefetcher::extend(Window& window) {
  window.ahead += slots_.bytes(window.next());
  if (++window.part == window.at(window.head).size()) {
    ++window.head;
    window.part = 0;
  }
}

void Prefetcher::drop_last_claim(Window& window) {
  if (window.part == 0) {
    --window.head;
    window.part = window.at(window.head).size();
  }
  --window.part;
  window.ahead -= slots_.bytes(window.next());
  slots_.drop_claim(window.next());
}

bool Prefetcher::drop_farthest_claim(int lane, bool any) {
  if (close_door()) {
    return true;
  }
  const Window& window = windows_[lane];
  Window* longest = nullptr;
  for (Window& other : windows_) {
    const bool has_more_than_its_share = other.kind != window.kind && other.ahead > share(other);
    const bool may_go = any || (&other == &window && (window.head > window.cursor || !has_others(lane))) ||
                        !other.active || (other.module == window.module && other.pass > window.pass) ||
                        has_more_than_its_share;
    if (may_go && !other.claims_nothing() &&
        (!longest || std::pair(longest->head - longest->cursor, longest->part) <
                         std::pair(other.head - other.cursor, other.part))) {
      longest = &other;
    }
  }
  if (!longest) {
    return false;
  }
  drop_last_claim(*longest);
  return true;
}

void Prefetcher::drop_all_claims() {
  drop_door_claims();
  for (Window& window : windows_) {
    while (!window.claims_nothing()) {
      drop_last_claim(window);
    }
  }
}

void Prefetcher::claim_placed(int lane) {
  Window& window = windows_[lane];
  const std::uint64_t from = window.head;
  while (window.head < window.limit() && slots_.has_place(window.next())) {
    // What an earlier pass has left is worth no more of the ring than this one may fill.
    const bool is_left_over = had_[window.next()] != window.pass_of_head();
    if (const std::uint64_t most = share(window);
        is_left_over && most < slots_.ring().bytes() && window.ahead + slots_.bytes(window.next()) > most) {
      break;
    }
    slots_.claim(window.next());
    extend(window);
  }
  note_had(lane, from);
}

void Prefetcher::claim_placed_for_all() {
  for (int lane = 0; lane < static_cast<int>(windows_.size()); ++lane) {
    if (windows_[lane].active) {
      claim_placed(lane);
    }
  }
}

/// Gives those of `weights` that have no place one, for which the door may close. False when there is no room.
bool Prefetcher::place(SlotTable::Transaction& attempt, const Step& weights) {
  while (true) {
    Step missing; // closing the door takes places away
    std::copy_if(weights.begin(), weights.end(), std::back_inserter(missing),
                 [&](WeightId weight) { return !slots_.has_place(weight); });
    if (attempt.place(missing)) {
      return true;
    }
    if (!close_door()) {
      return false;
    }
  }
}

/// Claims the next weights, of the step at the head of the window. False when they find no place.
bool Prefetcher::claim(Window& window, SlotTable::Transaction& attempt, const Step& weights) {
  if (!place(attempt, weights)) {
    return false;
  }
  for (const WeightId weight : weights) {
    attempt.claim(weight);
    extend(window);
  }
  return true;
}

bool Prefetcher::claim_rest_of_step(Window& window, SlotTable::Transaction& attempt) {
  const Step& step = window.at(window.head);
  return claim(window, attempt, Step(step.begin() + static_cast<std::ptrdiff_t>(window.part), step.end()));
}

/// Claims what is wanted to travel together, or all that comes until the end of the pass. False when not as much finds
/// room: window and places are then to be put back.
bool Prefetcher::claim_batch(Window& window, SlotTable::Transaction& attempt, std::uint64_t wanted, bool in_need) {
  while (attempt.bytes() < wanted && window.head < window.limit()) {
    if (window.part == 0 && window.head % window.sequence->size() == 0) {
      attempt.start_over();
    }
    const bool over_share = !in_need && window.ahead + slots_.bytes(window.at(window.head)) > share(window);
    if (over_share || !claim_rest_of_step(window, attempt)) {
      while (in_need && window.head < window.limit() && claim(window, attempt, {window.next()})) {
      }
      break;
    }
  }
  return attempt.bytes() >= wanted || window.head == window.limit();
}

void Prefetcher::prefetch(int lane, std::vector<Batch>& out) {
  Window& window = windows_[lane];
  while (true) {
    claim_placed(lane);
    // A lane with nothing ahead gets its next step at once; otherwise copies wait until they can travel together.
    const bool in_need = starved(lane);
    const std::uint64_t wanted = in_need ? 1 : slots_.batch_bytes();
    const std::uint64_t rest = window.total - std::min(window.total, window.ahead);
    if (!in_need && rest > wanted &&
        ((door_.empty() && slots_.ring().bytes_free() < wanted) || window.ahead + wanted > share(window))) {
      return; // as the attempt would find, step by step
    }
    if (comes_after_others(lane) ||
        awaited(lane, std::min(rest, in_need ? slots_.bytes(window.at(window.head)) : wanted))) {
      return;
    }
    const Window before = window;
    SlotTable::Transaction attempt(slots_);
    if (!claim_batch(window, attempt, wanted, in_need)) {
      window = before;
      return;
    }
    const bool nothing_left = attempt.bytes() == 0;
    const std::size_t handed_out = out.size();
    attempt.commit(out);
    note_handed_out(lane, out, handed_out);
    note_had(lane, before.head);
    claim_placed_for_all();
    if (nothing_left) {
      return;
    }
  }
}

bool Prefetcher::follow(int lane, const Step& step) {
  Window& window = windows_[lane];
  for (std::uint64_t at = window.cursor; at < window.limit(); ++at) {
    if (window.at(at) == step) {
      while (window.cursor < at) {
        step_on(lane);
      }
      return true;
    }
  }
  return false;
}

void Prefetcher::step_on(int lane) {
  Window& window = windows_[lane];
  const Step& step = window.at(window.cursor);
  const std::size_t claimed = window.head > window.cursor ? step.size() : window.part;
  for (std::size_t i = 0; i < claimed; ++i) {
    window.ahead -= slots_.bytes(step[i]);
    slots_.drop_claim(step[i]);
  }
  if (window.head == window.cursor) {
    ++window.head;
    window.part = 0;
  }
  ++window.cursor;
}

void Prefetcher::append_layout(std::vector<std::uint64_t>& layout) const {
  for (const Window& window : windows_) {
    const std::uint64_t steps = window.empty() ? 1 : window.sequence->size();
    layout.insert(layout.end(), {window.cursor % steps, window.head - window.cursor, window.part});
  }
}

} // namespace offload
