#include <offload/plan/device_budget.h>

#include <algorithm>

#include <offload/bytes.h>

namespace offload {

namespace {

std::uint64_t less(std::uint64_t bytes, std::uint64_t taken) { return bytes - std::min(bytes, taken); }

} // namespace

std::uint64_t DeviceBudget::minimum() const {
  return std::max<std::uint64_t>(fixed + align_up(least_ring, unit) + least_reserve(), 1); // a budget of 0 is none
}

std::uint64_t DeviceBudget::least_reserve() const { return align_up(call, unit) + state; }

/// Beside the smallest ring.
std::uint64_t DeviceBudget::left_for_calls() const { return less(vram, fixed + align_up(least_ring, unit)); }

std::uint64_t DeviceBudget::reserve() const {
  const std::uint64_t left = left_for_calls();
  const std::uint64_t each = align_up(call, unit);
  const std::uint64_t wanted =
      each * static_cast<std::uint64_t>(lanes - 1) + (calls_differ ? each / 4 * static_cast<std::uint64_t>(lanes) : 0);
  const std::uint64_t more = std::min(wanted, less(left, least_reserve()) / 2);
  return std::min(left, least_reserve() + align_up(more, unit)) / unit * unit;
}

std::uint64_t DeviceBudget::capacity() const { return less(vram, fixed + reserve()) / unit * unit; }

std::uint64_t DeviceBudget::room(std::uint64_t placed) const { return less(vram, fixed + placed) / unit * unit; }

} // namespace offload
