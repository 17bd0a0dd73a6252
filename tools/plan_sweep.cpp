#include <tools/plan_sweep.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <sstream>
#include <vector>

#include <offload/bytes.h>
#include <offload/core/printable.h>
#include <offload/error.h>
#include <tools/numbers.h>
#include <tools/svg.h>

namespace offload::tools {

namespace {

using Json = nlohmann::ordered_json;

std::string exact_ms(double us) { return number("%.3f ms", us / 1e3); }

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

double slowest_us(const Sweep& sweep) {
  double slowest = 0;
  for (const SweepPoint& point : sweep.points) {
    slowest = std::max(slowest, point.time_us);
  }
  return slowest;
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

/// The axes of a plot, from the first budget to the last, and from 0 to the slowest.
struct Axes {
  explicit Axes(const Sweep& sweep)
      : first(static_cast<double>(sweep.points.front().vram)),
        last(std::max(static_cast<double>(sweep.points.back().vram), first + 1)),
        most_us(std::max(slowest_us(sweep), 1e-3)),
        unit(last >= 4.0 * (1 << 30) ? 1 << 30 : 1 << 20) {}

  double x(double bytes) const { return (bytes - first) / (last - first); }
  const char* unit_name() const { return unit == 1 << 30 ? "GiB" : "MiB"; }

  double first;
  double last;
  double most_us;
  int unit; ///< of budgets
};

/// What is predicted at `bytes`, between the points next to it.
double time_at(const Sweep& sweep, double bytes) {
  for (std::size_t i = 1; i < sweep.points.size(); ++i) {
    const SweepPoint& a = sweep.points[i - 1];
    const SweepPoint& b = sweep.points[i];
    const auto begin = static_cast<double>(a.vram);
    const auto end = static_cast<double>(b.vram);
    if (bytes <= end && end > begin) {
      return a.time_us + (b.time_us - a.time_us) * std::max(bytes - begin, 0.0) / (end - begin);
    }
  }
  return sweep.points.back().time_us;
}

const char* color_of(Bound bound) {
  return bound == Bound::link ? "#2f86d6" : bound == Bound::compute ? "#4c9a52" : "#b58900";
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
  constexpr double kWidth = 900;
  constexpr double kHeight = 480;
  constexpr double kLeft = 70;
  constexpr double kTop = 76;
  constexpr double kPlotWidth = kWidth - kLeft - 30;
  constexpr double kPlotHeight = kHeight - kTop - 56;
  constexpr double kBottom = kTop + kPlotHeight;
  const Axes axes(sweep);
  const auto x_of = [&](double bytes) { return kLeft + kPlotWidth * axes.x(bytes); };
  const auto y_of = [&](double us) { return kBottom - kPlotHeight * us / axes.most_us; };
  const auto label = [](double value) {
    std::array<char, 32> text{};
    std::snprintf(text.data(), text.size(), "%g", value);
    return std::string(text.data());
  };
  std::ostringstream out;
  svg::begin(out, kWidth, kHeight, heading_of(sweep));
  double x = kLeft;
  for (const Bound bound : {Bound::link, Bound::compute, Bound::neither}) {
    const std::string what = std::string("bound by ") + to_string(bound);
    out << "<circle cx='" << svg::number(x) << "' cy='48' r='4' fill='" << color_of(bound) << "'/>\n";
    svg::text(out, x + 10, 52, "start", 12, what);
    x += 40 + 7 * static_cast<double>(what.size());
  }
  const double us_step = svg::tick_step(axes.most_us, 8);
  for (int tick = 0; tick * us_step <= axes.most_us; ++tick) {
    const double y = y_of(tick * us_step);
    svg::line(out, kLeft, y, kLeft + kPlotWidth, y, svg::kGrid, 0.6, "", 0.5);
    svg::text(out, kLeft - 8, y + 4, "end", 11, label(tick * us_step / 1e3));
  }
  const double step = svg::tick_step((axes.last - axes.first) / axes.unit, 10) * axes.unit;
  for (int tick = 0; tick * step <= axes.last; ++tick) {
    const double bytes = tick * step;
    if (bytes < axes.first) {
      continue;
    }
    svg::line(out, x_of(bytes), kBottom, x_of(bytes), kBottom + 4, svg::kGrid, 1, "", 1);
    svg::text(out, x_of(bytes), kBottom + 17, "middle", 11, label(bytes / axes.unit));
  }
  svg::text(out, kLeft + kPlotWidth / 2, kBottom + 38, "middle", 11, std::string("budget, ") + axes.unit_name());
  svg::text(out, kLeft - 8, kTop - 8, "end", 11, "ms a call");
  out << "<polyline fill='none' stroke='" << svg::kGrid << "' stroke-width='1.6' points='";
  for (const SweepPoint& point : sweep.points) {
    out << svg::number(x_of(static_cast<double>(point.vram))) << ',' << svg::number(y_of(point.time_us)) << ' ';
  }
  out << "'/>\n";
  for (const SweepPoint& point : sweep.points) {
    out << "<circle cx='" << svg::number(x_of(static_cast<double>(point.vram))) << "' cy='"
        << svg::number(y_of(point.time_us)) << "' r='3.5' fill='" << color_of(point.bound) << "'><title>"
        << svg::escape(format_bytes(point.vram) + ": " + exact_ms(point.time_us) + ", " +
                       format_bytes(point.streamed_bytes) + " streamed")
        << "</title></circle>\n";
  }
  if (sweep.knee) {
    const SweepPoint& knee = sweep.points[*sweep.knee];
    const double at = x_of(static_cast<double>(knee.vram));
    svg::line(out, at, kTop, at, kBottom, svg::kText, 1, "4 4", 0.9);
    const bool is_right = axes.x(static_cast<double>(knee.vram)) > 0.6;
    svg::text(out, at + (is_right ? -8 : 8), kTop + 12, is_right ? "end" : "start", 12, describe_knee(sweep), "bold");
  }
  svg::end(out);
  return out.str();
}

std::string to_plot(const Sweep& sweep, std::size_t columns) {
  constexpr std::size_t kRows = 16;
  constexpr std::size_t kMargin = 12; // of the axis of times
  const Axes axes(sweep);
  const std::size_t width = std::max<std::size_t>(columns, kMargin + 20) - kMargin - 1;
  std::vector<std::string> rows(kRows, std::string(width, ' '));
  const auto row_of = [&](double us) {
    return kRows - 1 - static_cast<std::size_t>(std::lround((kRows - 1) * us / axes.most_us));
  };
  for (std::size_t column = 0; column < width; ++column) {
    const double bytes =
        axes.first + (axes.last - axes.first) * static_cast<double>(column) / static_cast<double>(width - 1);
    rows[row_of(time_at(sweep, bytes))][column] = '*';
  }
  if (sweep.knee) {
    const SweepPoint& knee = sweep.points[*sweep.knee];
    const double share = axes.x(static_cast<double>(knee.vram));
    rows[row_of(knee.time_us)][static_cast<std::size_t>(std::lround(share * static_cast<double>(width - 1)))] = 'K';
  }
  std::ostringstream out;
  for (std::size_t row = 0; row < kRows; ++row) {
    const bool has_label = row == 0 || row == kRows - 1 || row == kRows / 2;
    const double us = axes.most_us * static_cast<double>(kRows - 1 - row) / (kRows - 1);
    std::array<char, 32> label{};
    std::snprintf(label.data(), label.size(), "%*.4g ms ", static_cast<int>(kMargin) - 5, us / 1e3);
    rows[row].erase(rows[row].find_last_not_of(' ') + 1);
    out << (has_label ? std::string(label.data()) : std::string(kMargin - 1, ' ')) << '|' << rows[row] << '\n';
  }
  const std::string first = format_bytes(sweep.points.front().vram);
  const std::string last = format_bytes(sweep.points.back().vram);
  const std::size_t labels = first.size() + last.size();
  out << std::string(kMargin - 1, ' ') << '+' << std::string(width, '-') << '\n'
      << std::string(kMargin, ' ') << first << std::string(width > labels ? width - labels : 1, ' ') << last << '\n'
      << std::string(kMargin, ' ') << "budget; " << describe_knee(sweep) << '\n';
  return out.str();
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
