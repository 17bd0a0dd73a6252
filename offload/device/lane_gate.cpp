#include <offload/device/lane_gate.h>

#include <algorithm>
#include <iterator>
#include <numeric>
#include <utility>

namespace offload {

LaneGate::LaneGate(int lanes) : free_(lanes), last_callers_(lanes), groups_(lanes), claims_(lanes), usual_(lanes) {
  std::iota(free_.rbegin(), free_.rend(), 0);
}

int LaneGate::acquire(const void* caller, std::uint64_t bytes, Group group, Priority priority) {
  const Lock lock(mutex_);
  return await_turn(waiters_.emplace(place_of(priority), false, group, caller, bytes, priority));
}

/// Before those of lower priority at the end, as far as they have not given way too often. No call goes before an
/// exclusive caller.
std::list<LaneGate::Waiter>::iterator LaneGate::place_of(Priority priority) {
  auto place = waiters_.end();
  for (auto earlier = place; earlier != waiters_.begin();) {
    --earlier;
    if (earlier->exclusive || earlier->priority >= priority || earlier->overtaking == kMostOvertaking) {
      break;
    }
    place = earlier;
  }
  for (auto later = place; later != waiters_.end(); ++later) {
    ++later->overtaking;
  }
  return place;
}

int LaneGate::lanes() const {
  const Lock lock(mutex_);
  return static_cast<int>(claims_.size());
}

int LaneGate::callers() const {
  const Lock lock(mutex_);
  return static_cast<int>(claims_.size() - free_.size() + waiters_.size());
}

void LaneGate::release(int lane) {
  const Lock lock(mutex_);
  free_.push_back(lane);
  claims_[lane] = 0;
  admit();
}

void LaneGate::acquire_exclusive(Group group) {
  const Lock lock(mutex_);
  exclusive_.reserve(exclusive_.size() + waiters_.size() + 1); // who admits it does not fail
  const auto place = std::find_if(waiters_.begin(), waiters_.end(), [&](const Waiter& waiter) {
    return !waiter.exclusive && !waiter.overtaken && (group == kAll || waiter.group == group);
  });
  await_turn(waiters_.emplace(place, true, group, nullptr, 0, Priority::normal));
}

void LaneGate::release_exclusive(Group group) {
  const Lock lock(mutex_);
  exclusive_.erase(std::find(exclusive_.begin(), exclusive_.end(), group));
  if (group == kAll) {
    claims_[0] = 0;
  }
  const auto first = std::find_if(waiters_.begin(), waiters_.end(), [&](const Waiter& waiter) {
    return !waiter.exclusive && (group == kAll || waiter.group == group);
  });
  if (first != waiters_.end()) {
    first->overtaken = true;
  }
  admit();
}

int LaneGate::await_turn(std::list<Waiter>::iterator waiter) {
  admit();
  waiter->admitted.wait(mutex_, [&] { return waiter->lane != kNone; });
  const int lane = waiter->lane;
  waiters_.erase(waiter);
  return lane;
}

/// Admits those who wait, in their order. Who waits for a lane or for memory is not overtaken; who waits for his group
/// to open, or to be empty, only by other groups.
void LaneGate::admit() {
  for (auto place = waiters_.begin(); place != waiters_.end(); ++place) {
    Waiter& waiter = *place;
    if (waiter.lane != kNone) {
      continue; // admitted, and about to wake up
    }
    const bool comes_after = std::any_of(waiters_.begin(), place, [&](const Waiter& earlier) {
      return earlier.lane == kNone && earlier.group == waiter.group;
    });
    if (comes_after || !is_open(waiter)) {
      if (waiter.group == kAll) {
        return;
      }
      continue;
    }
    if (waiter.exclusive) {
      exclusive_.push_back(waiter.group);
      waiter.lane = kExclusive;
    } else if (!has_room(waiter)) {
      return;
    } else {
      waiter.lane = take_lane(waiter.caller);
      groups_[waiter.lane] = waiter.group;
      claims_[waiter.lane] = std::min(waiter.bytes, room_ - std::min(room_, claimed()));
    }
    ++admitted_;
    waiter.admitted.notify_one();
  }
}

bool LaneGate::is_free(int lane) const { return std::find(free_.begin(), free_.end(), lane) != free_.end(); }

/// True when nobody has its group exclusively, or all; and, if it wants to, when there is no call of that in flight.
bool LaneGate::is_open(const Waiter& waiter) const {
  const auto of_group = [&](Group other) { return waiter.group == kAll || other == kAll || other == waiter.group; };
  if (std::any_of(exclusive_.begin(), exclusive_.end(), of_group)) {
    return false;
  }
  for (int lane = 0; waiter.exclusive && lane < static_cast<int>(groups_.size()); ++lane) {
    if (of_group(groups_[lane]) && !is_free(lane)) {
      return false;
    }
  }
  return true;
}

bool LaneGate::has_room(const Waiter& waiter) const {
  return free_.size() == claims_.size() || (!free_.empty() && fits_beside(claimed(), waiter.bytes));
}

bool LaneGate::fits_beside(std::uint64_t others, std::uint64_t bytes) const {
  return others <= room_ && bytes <= room_ - others;
}

int LaneGate::take_lane(const void* caller) {
  const auto rank = [&](int lane)
                        OFFLOAD_REQUIRES(mutex_) { return std::pair(lane < usual_, last_callers_[lane] == caller); };
  const auto chosen = std::max_element(free_.rbegin(), free_.rend(),
                                       [&](int a, int b) OFFLOAD_REQUIRES(mutex_) { return rank(a) < rank(b); });
  const int lane = *chosen;
  free_.erase(std::prev(chosen.base()));
  last_callers_[lane] = caller;
  return lane;
}

std::uint64_t LaneGate::claimed() const { return std::accumulate(claims_.begin(), claims_.end(), state_); }

void LaneGate::set_usual_lanes(int lanes) {
  const Lock lock(mutex_);
  usual_ = lanes;
}

void LaneGate::set_room(std::uint64_t bytes) {
  const Lock lock(mutex_);
  room_ = bytes;
  admit();
}

bool LaneGate::lower_room(std::uint64_t bytes) {
  const Lock lock(mutex_);
  room_ = bytes;
  return claimed() <= bytes;
}

std::uint64_t LaneGate::admitted() const {
  const Lock lock(mutex_);
  return admitted_;
}

std::uint64_t LaneGate::room() const {
  const Lock lock(mutex_);
  return room_;
}

bool LaneGate::extend(int lane, std::uint64_t bytes) {
  const Lock lock(mutex_);
  std::uint64_t& claim = claims_[lane];
  if (bytes > claim && !fits_beside(claimed() - claim, bytes)) {
    return false;
  }
  claim = std::max(claim, bytes);
  return true;
}

bool LaneGate::set_state(std::uint64_t bytes) {
  const Lock lock(mutex_);
  if (bytes > state_ && !fits_beside(claimed() - state_, bytes)) {
    return false;
  }
  state_ = bytes;
  return true;
}

} // namespace offload
