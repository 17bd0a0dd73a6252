#include <tools/plan_sweep.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <sstream>
#include <vector>

#include <offload/bytes.h>
#include <offload/core/printable.h>
#include <offload/error.h>
#include <tools/numbers.h>
#include <tools/plot_axes.h>
#include <tools/svg.h>

namespace offload::tools {

namespace {

using Json = nlohmann::ordered_json;

std::string exact(std::uint64_t bytes) { return format_bytes(bytes) + " (" + std::to_string(bytes) + " bytes)"; }

/// "Time of a call against vram_budget on cpu (costs of a machine)".
std::string heading_of(const Sweep& sweep) {
  return "Time of a call against vram_budget on " + sweep.device + " (costs of " + printable(sweep.machine) + ")";
}

std::string describe_knee(const Sweep& sweep) {
  if (!sweep.knee) {
    return "no knee";
  }
  const SweepPoint& knee = sweep.points[*sweep.knee];
  return "knee: " + format_bytes(knee.vram) + ", " + exact_ms(knee.time_us);
}

Json json_of(const SweepPoint& point) {
  return {{"vram", point.vram},
          {"time_us", point.time_us},
          {"streamed_bytes", point.streamed_bytes},
          {"bound", to_string(point.bound)}};
}

Json json_of(const Sweep& sweep) {
  Json points = Json::array();
  for (const SweepPoint& point : sweep.points) {
    points.push_back(json_of(point));
  }
  return {{"device", sweep.device},
          {"machine", sweep.machine},
          {"points", std::move(points)},
          {"knee", sweep.knee ? json_of(sweep.points[*sweep.knee]) : Json()}};
}

std::string text_of(const Json& json) { return json.dump(2, ' ', false, Json::error_handler_t::replace); }

void print_point(std::ostream& out, const SweepPoint& point) {
  std::array<char, 96> row{};
  std::snprintf(row.data(), row.size(), "  %10s  %14s  %12.1f  %s", format_bytes(point.vram).c_str(),
                exact_ms(point.time_us).c_str(), static_cast<double>(point.streamed_bytes) / (1 << 20),
                to_string(point.bound));
  out << row.data();
}

const char* color_of(Bound bound) {
  switch (bound) {
    case Bound::compute:
      return "#4c9a52";
    case Bound::launches:
      return "#8a6fc0";
    case Bound::link:
      return "#2f86d6";
    case Bound::disk:
      return "#c8553d";
    case Bound::neither:
      break;
  }
  return "#b58900";
}

} // namespace

std::string to_table(const Sweep& sweep) {
  std::ostringstream out;
  out << heading_of(sweep) << "\n      budget            time  MiB streamed  bound by\n";
  for (std::size_t i = 0; i < sweep.points.size(); ++i) {
    print_point(out, sweep.points[i]);
    out << (sweep.knee == i ? "   <- knee\n" : "\n");
  }
  out << "  " << describe_knee(sweep)
      << "; bound by neither: link and compute wait for each other, or both for callers\n";
  return out.str();
}

std::string to_json(const Sweep& sweep) { return text_of(json_of(sweep)) + "\n"; }

std::string to_svg(const Sweep& sweep) {
  const PlotAxes axes({sweep});
  std::ostringstream out;
  axes.begin(out, heading_of(sweep));
  double x = PlotAxes::kLeft;
  for (const Bound bound : {Bound::link, Bound::disk, Bound::compute, Bound::launches, Bound::neither}) {
    if (std::none_of(sweep.points.begin(), sweep.points.end(), [&](const auto& p) { return p.bound == bound; })) {
      continue;
    }
    const std::string what = std::string("bound by ") + to_string(bound);
    out << "<circle cx='" << svg::number(x) << "' cy='48' r='4' fill='" << color_of(bound) << "'/>\n";
    svg::text(out, x + 10, 52, "start", 12, what);
    x += 40 + 7 * static_cast<double>(what.size());
  }
  axes.draw_curve(out, sweep, svg::kGrid);
  for (const SweepPoint& point : sweep.points) {
    out << "<circle cx='" << svg::number(axes.x_of(point.vram)) << "' cy='" << svg::number(axes.y_of(point.time_us))
        << "' r='3.5' fill='" << color_of(point.bound) << "'><title>"
        << svg::escape(format_bytes(point.vram) + ": " + exact_ms(point.time_us) + ", " +
                       format_bytes(point.streamed_bytes) + " streamed")
        << "</title></circle>\n";
  }
  if (sweep.knee) {
    const SweepPoint& knee = sweep.points[*sweep.knee];
    const double at = axes.x_of(knee.vram);
    svg::line(out, at, PlotAxes::kTop, at, PlotAxes::kBottom, svg::kText, 1, "4 4", 0.9);
    const bool is_right = axes.share(knee.vram) > 0.6;
    svg::text(out, at + (is_right ? -8 : 8), PlotAxes::kTop + 12, is_right ? "end" : "start", 12, describe_knee(sweep),
              "bold");
  }
  svg::end(out);
  return out.str();
}

std::string to_plot(const Sweep& sweep, std::size_t columns) {
  CharacterPlot plot(PlotAxes({sweep}), columns);
  plot.draw_curve(sweep, '*');
  if (sweep.knee) {
    const SweepPoint& knee = sweep.points[*sweep.knee];
    plot.mark(knee.vram, knee.time_us, 'K');
  }
  return plot.text("budget; " + describe_knee(sweep));
}

namespace {

const SweepPoint& require_fit(const Fit& fit, double time_us) {
  if (!fit.smallest) {
    const std::vector<SweepPoint>& points = fit.tried.points;
    const auto faster = [](const SweepPoint& a, const SweepPoint& b) { return a.time_us < b.time_us; };
    const double best_us = std::min_element(points.begin(), points.end(), faster)->time_us;
    const SweepPoint& best = *std::find_if(points.begin(), points.end(), [&](const SweepPoint& point) {
      return point.time_us < 1.001 * best_us; // the smallest budget that is as good
    });
    throw InputError("--fit: no budget makes a call take " + exact_ms(time_us) + "; the best that was found is " +
                     exact_ms(best.time_us) + ", with " + exact(best.vram));
  }
  return *fit.smallest;
}

/// Of the larger budgets that were tried, those that take longer than wanted.
std::size_t count_slower(const Fit& fit, double time_us) {
  return static_cast<std::size_t>(std::count_if(
      fit.tried.points.begin(), fit.tried.points.end(),
      [&](const SweepPoint& point) { return point.vram > fit.smallest->vram && point.time_us > time_us; }));
}

} // namespace

std::string to_table(const Fit& fit, double time_us) {
  const SweepPoint& found = require_fit(fit, time_us);
  const std::size_t slower = count_slower(fit, time_us);
  std::ostringstream out;
  out << "A call of " << exact_ms(time_us) << " on " << fit.tried.device << " (costs of "
      << printable(fit.tried.machine) << ")\n"
      << "  budget    " << exact(found.vram) << ", the smallest that is fast enough, of " << fit.tried.points.size()
      << " that were tried\n"
      << "  predicted " << exact_ms(found.time_us) << " a call, " << format_bytes(found.streamed_bytes)
      << " streamed, bound by " << to_string(found.bound) << '\n';
  if (slower > 0) {
    out << "  of the larger budgets that were tried, " << slower << " are not fast enough: give exactly this one\n";
  }
  return out.str();
}

std::string to_json(const Fit& fit, double time_us) {
  const SweepPoint& found = require_fit(fit, time_us);
  const Json json = {{"wanted_us", time_us},
                     {"smallest", json_of(found)},
                     {"larger_and_slower", count_slower(fit, time_us)},
                     {"tried", json_of(fit.tried)}};
  return text_of(json) + "\n";
}

} // namespace offload::tools
