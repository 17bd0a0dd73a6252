#include <offload/plan/pool_division.h>

#include <algorithm>
#include <numeric>
#include <optional>

namespace offload {

namespace {

using Point = ResidentCurve::Point;

/// Microseconds that each byte from `from` to `to` saves.
double slope(const Point& from, const Point& to) {
  return (from.time_us - to.time_us) / static_cast<double>(to.bytes - from.bytes);
}

/// Drops points that save less for each byte than the next ones do: nobody would stop there.
std::vector<Point> convex(const std::vector<Point>& points) {
  std::vector<Point> hull;
  for (const Point& point : points) {
    while (hull.size() > 1 && slope(hull[hull.size() - 2], hull.back()) <= slope(hull.back(), point)) {
      hull.pop_back();
    }
    if (hull.empty() || (point.bytes > hull.back().bytes && point.time_us < hull.back().time_us)) {
      hull.push_back(point);
    }
  }
  return hull;
}

double time_at(const ResidentCurve& curve, std::uint64_t bytes) {
  const auto& points = curve.points;
  const auto above =
      std::find_if(points.begin(), points.end(), [&](const Point& point) { return point.bytes >= bytes; });
  if (above == points.begin() || points.empty()) {
    return points.empty() ? 0 : points.front().time_us;
  }
  if (above == points.end()) {
    return points.back().time_us;
  }
  const Point& below = *(above - 1);
  return below.time_us - slope(below, *above) * static_cast<double>(bytes - below.bytes);
}

} // namespace

ResidentCurve resident_curve(const Pass& pass, std::uint64_t ring_bytes, const MachineProfile& machine) {
  constexpr std::uint64_t kParts = 8;
  constexpr double kOthers = 0.01; // of the time that it has the link: others have to wait for that
  std::uint64_t all = 0;
  for (WeightId weight = 0; weight < pass.weights->size(); ++weight) {
    all += pass.bytes(weight);
  }
  std::vector<Point> points;
  for (std::uint64_t part = 0; part <= kParts; ++part) {
    const Plan plan =
        plan_beside_ring(pass, all / kParts * part + (part == kParts ? all % kParts : 0), ring_bytes, machine);
    const std::uint64_t bytes = bytes_of(plan.residency) - plan.residency.ring_bytes;
    if (points.empty() || bytes > points.back().bytes) {
      points.push_back({bytes, plan.predicted.time_us + kOthers * plan.predicted.link_us});
    }
    if (plan.predicted.streamed_bytes == 0) {
      break;
    }
  }
  return {convex(points)};
}

std::vector<std::uint64_t> divide_resident(const std::vector<Claimant>& claimants, std::uint64_t capacity) {
  std::vector<std::uint64_t> bytes(claimants.size());
  std::vector<std::size_t> reached(claimants.size()); // points
  while (true) {
    std::optional<std::size_t> best;
    double most_saved = 0;
    for (std::size_t i = 0; i < claimants.size(); ++i) {
      const auto& points = claimants[i].curve->points;
      if (reached[i] + 1 >= points.size() || bytes[i] >= claimants[i].most) {
        continue;
      }
      const double saved = claimants[i].rate * slope(points[reached[i]], points[reached[i] + 1]);
      if (saved > most_saved) {
        best = i;
        most_saved = saved;
      }
    }
    if (!best || capacity == 0) {
      break;
    }
    const std::uint64_t next = std::min(claimants[*best].curve->points[++reached[*best]].bytes, claimants[*best].most);
    const std::uint64_t more = std::min(next - bytes[*best], capacity);
    bytes[*best] += more;
    capacity -= more;
  }
  std::vector<std::size_t> by_rate(claimants.size());
  std::iota(by_rate.begin(), by_rate.end(), 0);
  std::stable_sort(by_rate.begin(), by_rate.end(),
                   [&](std::size_t a, std::size_t b) { return claimants[a].rate > claimants[b].rate; });
  for (const std::size_t i : by_rate) {
    const std::uint64_t more = claimants[i].rate > 0 ? std::min(left_of(claimants[i].most, bytes[i]), capacity) : 0;
    bytes[i] += more;
    capacity -= more;
  }
  return bytes;
}

double load_of(const std::vector<Claimant>& claimants, const std::vector<std::uint64_t>& bytes) {
  double load = 0;
  for (std::size_t i = 0; i < claimants.size(); ++i) {
    load += claimants[i].rate * time_at(*claimants[i].curve, bytes[i]);
  }
  return load;
}

} // namespace offload
