#include <offload/device/lane_gate.h>

#include <algorithm>
#include <iterator>
#include <numeric>
#include <utility>

namespace offload {

LaneGate::LaneGate(int lanes) : free_(lanes), last_callers_(lanes), claims_(lanes), usual_(lanes) {
  std::iota(free_.rbegin(), free_.rend(), 0);
}

int LaneGate::acquire(const void* caller, std::uint64_t bytes) {
  const Lock lock(mutex_);
  return await_turn(waiters_.emplace(waiters_.end(), false, caller, bytes));
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

void LaneGate::acquire_exclusive() {
  const Lock lock(mutex_);
  const auto place = std::find_if(waiters_.begin(), waiters_.end(),
                                  [](const Waiter& waiter) { return !waiter.exclusive && !waiter.overtaken; });
  await_turn(waiters_.emplace(place, true, nullptr, 0));
}

void LaneGate::release_exclusive() {
  const Lock lock(mutex_);
  exclusive_ = false;
  claims_[0] = 0;
  const auto first =
      std::find_if(waiters_.begin(), waiters_.end(), [](const Waiter& waiter) { return !waiter.exclusive; });
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

/// Admits those who wait, in their order, up to the first who may not be admitted yet.
void LaneGate::admit() {
  for (Waiter& waiter : waiters_) {
    if (waiter.lane != kNone) {
      continue; // admitted, and about to wake up
    }
    if (!may_acquire(waiter)) {
      return;
    }
    if (waiter.exclusive) {
      exclusive_ = true;
      waiter.lane = kExclusive;
    } else {
      waiter.lane = take_lane(waiter.caller);
      claims_[waiter.lane] = std::min(waiter.bytes, room_ - std::min(room_, claimed()));
    }
    waiter.admitted.notify_one();
  }
}

bool LaneGate::may_acquire(const Waiter& waiter) const {
  const bool nobody_is_in = !exclusive_ && free_.size() == claims_.size();
  if (waiter.exclusive || nobody_is_in) {
    return nobody_is_in;
  }
  return !exclusive_ && !free_.empty() && fits_beside(claimed(), waiter.bytes);
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
