#include <offload/preview.h>

#include <algorithm>

#include <offload/error.h>
#include <offload/runtime/own_session.h>

namespace offload {

namespace {

/// `module` with what is known of it under `options`; it has been put back already.
OwnSession examine_for_plans(const torch::jit::Module& module, const Options& options,
                             const std::optional<MachineProfile>& machine) {
  if (options.pool) {
    throw InputError("what of a module is resident in a pool depends on the others: preview it with a vram_budget");
  }
  return {module, options, machine, OwnSession::Purpose::plan, Owner::shared};
}

Sweep sweep_of(const OwnSession& session, std::vector<SweepPoint> points) {
  const Placement placement = session.planned().placement();
  const std::optional<std::size_t> knee = knee_of(points);
  return {placement.device, placement.machine, std::move(points), knee};
}

std::vector<SweepPoint> sweep_all(const Observations& observed, const Options& options) {
  const std::uint64_t least = observed.divide(0).minimum();
  const std::uint64_t all = observed.resident_vram();
  return sweep_between(least, std::min(all, options.vram_budget.value_or(all)),
                       [&](std::uint64_t vram) { return observed.point(vram); });
}

} // namespace

// NOLINTBEGIN(performance-unnecessary-value-param): as of wrap(), whose arguments these are given to try them

Placement preview(torch::jit::Module module, const Options& options, const std::optional<MachineProfile>& machine) {
  return examine_for_plans(module, options, machine).planned().placement();
}

Timeline timeline(torch::jit::Module module, const Options& options, const std::optional<MachineProfile>& machine) {
  const OwnSession session = examine_for_plans(module, options, machine);
  return session.planned().observations().timeline(session.planned().residency());
}

Sweep sweep(torch::jit::Module module, const Options& options, const std::vector<std::uint64_t>& budgets,
            const std::optional<MachineProfile>& machine) {
  const OwnSession session = examine_for_plans(module, options, machine);
  const Observations observed = session.planned().observations();
  if (budgets.empty()) {
    return sweep_of(session, sweep_all(observed, options));
  }
  std::vector<SweepPoint> points;
  for (const std::uint64_t vram : budgets) {
    session.planned().require_minimum(vram);
    points.push_back(observed.point(vram));
  }
  std::sort(points.begin(), points.end(), [](const SweepPoint& a, const SweepPoint& b) { return a.vram < b.vram; });
  return sweep_of(session, std::move(points));
}

Fit fit(torch::jit::Module module, const Options& options, double time_us,
        const std::optional<MachineProfile>& machine) {
  const OwnSession session = examine_for_plans(module, options, machine);
  const Observations observed = session.planned().observations();
  std::vector<SweepPoint> points = sweep_all(observed, options);
  const std::optional<SweepPoint> smallest =
      fit_between(points, time_us, [&](std::uint64_t vram) { return observed.point(vram); });
  return {smallest, sweep_of(session, std::move(points))};
}

// NOLINTEND(performance-unnecessary-value-param)

} // namespace offload
