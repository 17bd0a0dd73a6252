#include <tools/plot_axes.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <sstream>

#include <offload/bytes.h>
#include <tools/numbers.h>
#include <tools/svg.h>

namespace offload::tools {

namespace {

constexpr std::size_t kRows = 16;
constexpr std::size_t kMargin = 12; // of the axis of times

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

} // namespace

std::string exact_ms(double us) { return number("%.3f ms", us / 1e3); }

PlotAxes::PlotAxes(const std::vector<Sweep>& sweeps) : first_(sweeps.front().points.front().vram), last_(first_ + 1) {
  for (const Sweep& sweep : sweeps) {
    first_ = std::min(first_, sweep.points.front().vram);
    last_ = std::max(last_, sweep.points.back().vram);
    for (const SweepPoint& point : sweep.points) {
      most_us_ = std::max(most_us_, point.time_us);
    }
  }
}

void PlotAxes::begin(std::ostream& out, const std::string& heading) const {
  const double unit = last_ >= 4_GiB ? 1_GiB : 1_MiB;
  svg::begin(out, kWidth, kHeight, heading);
  const double us_step = svg::tick_step(most_us_, 8);
  for (int tick = 0; tick * us_step <= most_us_; ++tick) {
    const double y = y_of(tick * us_step);
    svg::line(out, kLeft, y, kLeft + kPlotWidth, y, svg::kGrid, 0.6, "", 0.5);
    svg::text(out, kLeft - 8, y + 4, "end", 11, number("%g", tick * us_step / 1e3));
  }
  const double step = svg::tick_step(static_cast<double>(last_ - first_) / unit, 10) * unit;
  for (int tick = 0; tick * step <= static_cast<double>(last_); ++tick) {
    const auto bytes = static_cast<std::uint64_t>(tick * step);
    if (bytes < first_) {
      continue;
    }
    svg::line(out, x_of(bytes), kBottom, x_of(bytes), kBottom + 4, svg::kGrid, 1, "", 1);
    svg::text(out, x_of(bytes), kBottom + 17, "middle", 11, number("%g", tick * step / unit));
  }
  svg::text(out, kLeft + kPlotWidth / 2, kBottom + 38, "middle", 11, last_ >= 4_GiB ? "budget, GiB" : "budget, MiB");
  svg::text(out, kLeft - 8, kTop - 8, "end", 11, "ms a call");
}

void PlotAxes::draw_curve(std::ostream& out, const Sweep& sweep, const char* color) const {
  out << "<polyline fill='none' stroke='" << color << "' stroke-width='1.6' points='";
  for (const SweepPoint& point : sweep.points) {
    out << svg::number(x_of(point.vram)) << ',' << svg::number(y_of(point.time_us)) << ' ';
  }
  out << "'/>\n";
}

CharacterPlot::CharacterPlot(const PlotAxes& axes, std::size_t columns)
    : axes_(axes),
      width_(std::max<std::size_t>(columns, kMargin + 20) - kMargin - 1),
      rows_(kRows, std::string(width_, ' ')) {}

char& CharacterPlot::at(std::size_t column, double us) {
  return rows_[kRows - 1 - static_cast<std::size_t>(std::lround((kRows - 1) * us / axes_.most_us()))][column];
}

void CharacterPlot::draw_curve(const Sweep& sweep, char with) {
  const auto first = static_cast<double>(axes_.first());
  const auto last = static_cast<double>(axes_.last());
  for (std::size_t column = 0; column < width_; ++column) {
    const double bytes = first + (last - first) * static_cast<double>(column) / static_cast<double>(width_ - 1);
    if (bytes >= static_cast<double>(sweep.points.front().vram)) {
      at(column, time_at(sweep, bytes)) = with;
    }
  }
}

void CharacterPlot::mark(std::uint64_t vram, double us, char with) {
  at(static_cast<std::size_t>(std::lround(axes_.share(vram) * static_cast<double>(width_ - 1))), us) = with;
}

std::string CharacterPlot::text(const std::string& legend) const {
  std::ostringstream out;
  for (std::size_t row = 0; row < kRows; ++row) {
    const bool has_label = row == 0 || row == kRows - 1 || row == kRows / 2;
    const double us = axes_.most_us() * static_cast<double>(kRows - 1 - row) / (kRows - 1);
    std::array<char, 32> label{};
    std::snprintf(label.data(), label.size(), "%*.4g ms ", static_cast<int>(kMargin) - 5, us / 1e3);
    const std::string line = rows_[row].substr(0, rows_[row].find_last_not_of(' ') + 1);
    out << (has_label ? std::string(label.data()) : std::string(kMargin - 1, ' ')) << '|' << line << '\n';
  }
  const std::string first = format_bytes(axes_.first());
  const std::string last = format_bytes(axes_.last());
  const std::size_t labels = first.size() + last.size();
  out << std::string(kMargin - 1, ' ') << '+' << std::string(width_, '-') << '\n'
      << std::string(kMargin, ' ') << first << std::string(width_ > labels ? width_ - labels : 1, ' ') << last << '\n'
      << std::string(kMargin, ' ') << legend << '\n';
  return out.str();
}

} // namespace offload::tools
