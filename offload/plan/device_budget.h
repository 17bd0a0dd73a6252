#pragma once

#include <cstdint>

namespace offload {

/// How a budget of device memory is divided: between what stays, resident weights with the ring, and calls. All in
/// bytes.
struct DeviceBudget {
  std::uint64_t vram = 0;       ///< all of it
  std::uint64_t fixed = 0;      ///< weights that stay, however it is planned
  std::uint64_t least_ring = 0; ///< the smallest that every step finds room in
  std::uint64_t call = 0;       ///< what the largest call takes; 0 on a host, where calls take what they need
  std::uint64_t usual_call = 0; ///< what calls beside the largest take; 0 when they may all be as large
  std::uint64_t state = 0;      ///< what calls have put into the module
  int lanes = 1;                ///< calls in flight at the same time that it is divided for
  bool calls_differ = false;    ///< they do not all take the same
  std::uint64_t unit = 512;     ///< in which memory is given out there

  /// The smallest that works: with one call at a time, and no weight resident that need not be.
  std::uint64_t minimum() const;

  /// What one call takes, beside what calls have put into the module.
  std::uint64_t least_reserve() const;

  /// What is kept from weights: for the largest call and as many usual ones beside it as there are lanes, as far as it
  /// goes; and, from half of what is left, some for larger ones where calls differ.
  std::uint64_t reserve() const;

  /// True when that is all that the lanes need.
  bool has_room_for_lanes() const;

  /// What resident weights and the ring may take.
  std::uint64_t capacity() const;

  /// What calls may take where weights and ring take `placed`: all that is left.
  std::uint64_t room(std::uint64_t placed) const;

 private:
  std::uint64_t left_for_calls() const;
  std::uint64_t calls_on_all_lanes() const;
};

} // namespace offload
