#pragma once

#include <functional>
#include <optional>
#include <vector>

#include <offload/plan/simulate.h>
#include <offload/sweep.h>

namespace offload {

/// What is predicted under a budget.
using PointAt = std::function<SweepPoint(std::uint64_t vram)>;

/// What copies and the device mostly do, whichever of the two binds.
struct Binding {
  Bound copies = Bound::link;    ///< or disk
  Bound device = Bound::compute; ///< or launches
};

Binding binding_of(const Pass& pass, const Residency& residency, const MachineProfile& machine);

Bound bound_of(const Simulated& round, Binding binding = {});

/// Points at `least`, at `most`, and between them, `count` at the most: closer where the time changes more.
std::vector<SweepPoint> sweep_between(std::uint64_t least, std::uint64_t most, const PointAt& point_at,
                                      std::size_t count = 40);

/// See Sweep::knee.
std::optional<std::size_t> knee_of(const std::vector<SweepPoint>& points);

/// The first of `points`, which are in order, that takes no more than `time_us`; or, as far as can be found by halving
/// the space before it, a smaller budget that does. What is tried is added to `points`. None where no point is fast
/// enough.
std::optional<SweepPoint> fit_between(std::vector<SweepPoint>& points, double time_us, const PointAt& point_at);

} // namespace offload
