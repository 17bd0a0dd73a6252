#include <offload/plan/device_budget.h>

#include <algorithm>

#include <offload/bytes.h>
#include <offload/core/words.h>

namespace offload {

std::uint64_t DeviceBudget::minimum() const {
  return std::max<std::uint64_t>(fixed + align_up(least_ring, unit) + least_reserve(), 1); // a budget of 0 is none
}

std::uint64_t DeviceBudget::least_reserve() const { return align_up(call, unit) + state; }

/// Beside the smallest ring.
std::uint64_t DeviceBudget::left_for_calls() const { return left_of(vram, fixed + align_up(least_ring, unit)); }

std::uint64_t DeviceBudget::calls_on_all_lanes() const {
  const std::uint64_t usual = usual_call > 0 ? std::min(usual_call, call) : call;
  return align_up(call, unit) + align_up(usual, unit) * static_cast<std::uint64_t>(lanes - 1) + state;
}

bool DeviceBudget::has_room_for_lanes() const { return calls_on_all_lanes() <= left_for_calls(); }

std::uint64_t DeviceBudget::reserve() const {
  const std::uint64_t left = left_for_calls();
  const std::uint64_t largest = std::min(left, calls_on_all_lanes());
  const std::uint64_t larger = calls_differ ? calls_on_all_lanes() / 4 : 0;
  return std::min(left, largest + align_up(std::min(larger, (left - largest) / 2), unit)) / unit * unit;
}

std::uint64_t DeviceBudget::capacity() const { return left_of(vram, fixed + reserve()) / unit * unit; }

std::uint64_t DeviceBudget::room(std::uint64_t placed) const { return left_of(vram, fixed + placed) / unit * unit; }

} // namespace offload
