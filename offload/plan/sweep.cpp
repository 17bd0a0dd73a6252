#include <offload/plan/sweep.h>

#include <algorithm>
#include <bit>
#include <cmath>

namespace offload {

const char* to_string(Bound bound) {
  switch (bound) {
    case Bound::compute:
      return "compute";
    case Bound::launches:
      return "launches";
    case Bound::link:
      return "link";
    case Bound::disk:
      return "disk";
    case Bound::neither:
      return "neither";
  }
  return "unknown";
}

Binding binding_of(const Pass& pass, const Residency& residency, const MachineProfile& machine) {
  double work_us = 0;
  double device_us = 0; // with the least time between nodes
  double bytes = 0;     // that stream
  double bytes_of_files = 0;
  for (const PlanStep& step : pass.steps) {
    work_us += step.compute_us;
    device_us += std::max(step.compute_us, step.launch_us);
    for (const WeightId weight : step.weights) {
      if (!residency.stays(weight)) {
        const auto each = static_cast<double>(pass.bytes(weight));
        bytes += each;
        bytes_of_files += (*pass.weights)[weight].source.kind == Source::Kind::file ? each : 0;
      }
    }
  }
  const double files_us = bytes_of_files / std::max(machine.file_bytes_per_us, 1e-9);
  const double others_us = (bytes - bytes_of_files) / std::max(machine.link_bytes_per_us, 1e-9);
  const bool is_disk = machine.file_bytes_per_us < machine.link_bytes_per_us && files_us > others_us;
  return {is_disk ? Bound::disk : Bound::link, 2 * work_us < device_us ? Bound::launches : Bound::compute};
}

Bound bound_of(const Simulated& round, Binding binding) {
  constexpr double kBinds = 0.95;
  return round.compute_us >= kBinds * round.time_us ? binding.device
         : round.link_us >= kBinds * round.time_us  ? binding.copies
                                                    : Bound::neither;
}

std::vector<SweepPoint> sweep_between(std::uint64_t least, std::uint64_t most, const PointAt& point_at,
                                      std::size_t count) {
  std::vector<SweepPoint> points = {point_at(least)};
  if (most <= least) {
    return points;
  }
  points.push_back(point_at(most));
  const std::uint64_t unit = std::bit_floor(std::max<std::uint64_t>((most - least) / 1024, 1)); // for round numbers
  while (points.size() < count) {
    // Halves the longest line of the plot.
    const auto [fastest, slowest] = std::minmax_element(
        points.begin(), points.end(), [](const SweepPoint& a, const SweepPoint& b) { return a.time_us < b.time_us; });
    const double range_us = std::max(slowest->time_us - fastest->time_us, 1e-9);
    double longest = 0;
    std::size_t end = 0; // of that line
    for (std::size_t i = 1; i < points.size(); ++i) {
      const std::uint64_t bytes = points[i].vram - points[i - 1].vram;
      const double length = std::hypot(static_cast<double>(bytes) / static_cast<double>(most - least),
                                       (points[i].time_us - points[i - 1].time_us) / range_us);
      if (bytes >= 2 * unit && length > longest) {
        longest = length;
        end = i;
      }
    }
    if (end == 0) {
      break;
    }
    const std::uint64_t middle = points[end - 1].vram + (points[end].vram - points[end - 1].vram) / 2;
    points.insert(points.begin() + static_cast<std::ptrdiff_t>(end), point_at(middle / unit * unit));
  }
  return points;
}

std::optional<std::size_t> knee_of(const std::vector<SweepPoint>& points) {
  constexpr double kLeast = 0.1;
  if (points.empty() || points.back().time_us >= points.front().time_us) {
    return std::nullopt;
  }
  const double bytes = static_cast<double>(points.back().vram - points.front().vram);
  const double us = points.front().time_us - points.back().time_us;
  double farthest = kLeast;
  std::optional<std::size_t> knee;
  for (std::size_t i = 0; i < points.size(); ++i) {
    const double below = 1 - static_cast<double>(points[i].vram - points.front().vram) / bytes -
                         (points[i].time_us - points.back().time_us) / us;
    if (below > farthest) {
      farthest = below;
      knee = i;
    }
  }
  return knee;
}

std::optional<SweepPoint> fit_between(std::vector<SweepPoint>& points, double time_us, const PointAt& point_at) {
  const auto fits = [&](const SweepPoint& point) { return point.time_us <= time_us; };
  auto found = std::find_if(points.begin(), points.end(), fits);
  if (found == points.end()) {
    return std::nullopt;
  }
  const std::uint64_t unit = std::max<std::uint64_t>((points.back().vram - points.front().vram) / 4096, 1);
  while (found != points.begin() && found->vram - std::prev(found)->vram > unit) {
    const std::uint64_t below = std::prev(found)->vram;
    const SweepPoint middle = point_at(below + (found->vram - below) / 2);
    found = points.insert(found, middle); // from there on, the first that fits is this one or the next
    found += fits(*found) ? 0 : 1;
  }
  return *found;
}

} // namespace offload
