#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include <offload/plan/planner.h>

namespace offload {

/// What a call of one module takes, its own time and a little of what others lose by it, by how much of it is resident.
struct ResidentCurve {
  struct Point {
    std::uint64_t bytes = 0;
    double time_us = 0;
  };
  std::vector<Point> points; ///< by bytes, from none to all; each takes less time than the one before
};

/// By simulating calls with a ring of `ring_bytes` at a few points.
ResidentCurve resident_curve(const Pass& pass, std::uint64_t ring_bytes, const MachineProfile& machine);

/// A module that wants resident bytes.
struct Claimant {
  std::shared_ptr<const ResidentCurve> curve;
  double rate = 0;        ///< calls in a unit of time, the same for all, times what one of them is worth
  std::uint64_t most = 0; ///< bytes that it may have; no more than it has
};

/// Bytes for each claimant, `capacity` together: where they save most time, in all calls that are made in a unit of it.
/// What is left goes to those that are called most, though it saves nothing that a simulation can tell.
std::vector<std::uint64_t> divide_resident(const std::vector<Claimant>& claimants, std::uint64_t capacity);

/// The time that calls take in a unit of it when `bytes` are resident of each claimant.
double load_of(const std::vector<Claimant>& claimants, const std::vector<std::uint64_t>& bytes);

} // namespace offload
