#pragma once

#include <cstdint>

#include <offload/plan/simulate.h>
#include <offload/rule.h>

namespace offload {

/// The best residency that was found, for whom, and what it should cost.
struct Plan {
  Residency residency;
  Simulated predicted; ///< of one caller
  Callers callers;     ///< that it is the best for
  Simulated round;     ///< of these
};

/// The least capacity in which `pass` runs: the weights of the step that reads most, since a step needs all of its
/// weights on the device at once, resident or streamed.
std::uint64_t minimum_capacity(const Pass& pass);

/// The capacity in which all that `pass` may read is resident.
std::uint64_t resident_capacity(const Pass& pass);

/// Chooses what stays on the device so that a simulated round is shortest. Among equals it takes one that streams
/// nothing; then the longest ring, up to a few batches, as room for what is not simulated; then what streams least.
/// While anything streams, all of `capacity` is used: where no other weight fits, the ring gets the rest. `capacity` is
/// at least minimum_capacity(pass). For one caller never worse than plan_larger_first(). By another rule it is the same
/// among what that allows.
Plan plan(const Pass& pass, std::uint64_t capacity, const MachineProfile& machine, Callers callers = {},
          Rule rule = Rule::fastest);

/// The same for a module whose ring is given, of at least minimum_capacity(pass) bytes, and is not its own: what stays,
/// of at most `capacity` bytes, so that a row of calls is fastest. Weights of which `kept` has bytes are among it.
Plan plan_beside_ring(const Pass& pass, std::uint64_t capacity, std::uint64_t ring_bytes, const MachineProfile& machine,
                      const Residency& kept = {});

/// The rule of thumb: the largest weights stay, as many as there is room for beside the smallest ring.
Plan plan_larger_first(const Pass& pass, std::uint64_t capacity, const MachineProfile& machine, Callers callers = {});

} // namespace offload
