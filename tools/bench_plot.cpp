#include <tools/bench_report.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <sstream>

#include <tools/bench_errors_report.h>
#include <tools/svg.h>

namespace offload::tools {

namespace {

struct Style {
  const char* name;
  const char* color;
  const char* dashes;
  double width;
  double opacity;
  bool marks;
};

enum Series { kLimit, kRecord, kAuto, kOurs, kSeries };

// Hues of middle lightness. The limit is a band: a line that lies on it stays visible.
constexpr std::array<Style, kSeries> kStyles = {{{"limit", "#8a8a8a", "", 8, 0.45, false},
                                                 {"record's Auto, on its machine", "#b58900", "2 3", 1.6, 1, true},
                                                 {"Auto here", "#d9534f", "", 1.6, 1, true},
                                                 {"offload", "#2f86d6", "", 2.2, 1, true}}};

constexpr int kColumns = 3;
constexpr double kPanelWidth = 360;
constexpr double kPanelHeight = 250;
constexpr double kTop = 74;
constexpr double kLeft = 56; // of the plot in its panel
constexpr double kAbove = 30;
constexpr double kPlotWidth = kPanelWidth - kLeft - 18;
constexpr double kPlotHeight = kPanelHeight - kAbove - 46;

struct Point {
  double percent;
  double ms;
};

std::array<std::vector<Point>, kSeries> points_of(const TableResult& table) {
  std::array<std::vector<Point>, kSeries> points;
  for (const RowResult& row : table.rows) {
    const double percent = 100.0 * static_cast<double>(row.layers_on_gpu) / static_cast<double>(table.stack.layers);
    points[kOurs].push_back({percent, row.blocks.time_us() / 1e3});
    points[kLimit].push_back({percent, row.blocks.limit_us(table.bytes_beyond(row)) / 1e3});
    if (!row.auto_us.empty()) {
      points[kAuto].push_back({percent, median(row.auto_us) / 1e3});
    }
    if (const RecordRow* record = table.stack.find_record(Residence::partly, row.layers_on_gpu)) {
      points[kRecord].push_back({percent, record->average_ms});
    }
  }
  return points;
}

/// Of the axis, for all points.
std::vector<double> ticks_of(const std::array<std::vector<Point>, kSeries>& points) {
  double least = INFINITY;
  double most = 0;
  for (const auto& series : points) {
    for (const Point& point : series) {
      least = std::min(least, point.ms);
      most = std::max(most, point.ms);
    }
  }
  return svg::log_ticks(least, most);
}

void mark(std::ostream& out, double x, double y, const Style& style) {
  out << "<circle cx='" << svg::number(x) << "' cy='" << svg::number(y) << "' r='3' fill='" << style.color << "'/>\n";
}

void legend(std::ostream& out, const std::vector<bool>& shown) {
  double x = 20;
  for (int series = kSeries - 1; series >= 0; --series) {
    if (!shown[static_cast<std::size_t>(series)]) {
      continue;
    }
    const Style& style = kStyles[static_cast<std::size_t>(series)];
    svg::line(out, x, 52, x + 28, 52, style.color, style.width, style.dashes, style.opacity);
    if (style.marks) {
      mark(out, x + 14, 52, style);
    }
    svg::text(out, x + 34, 56, "start", 12, style.name);
    x += 60 + 7.2 * static_cast<double>(std::string(style.name).size());
  }
}

void panel(std::ostream& out, const std::string& title, const std::array<std::vector<Point>, kSeries>& points) {
  const double bottom = kAbove + kPlotHeight;
  const std::size_t comma = title.size() > 44 ? title.find(": ") : std::string::npos;
  if (comma == std::string::npos) {
    svg::text(out, kLeft, 22, "start", 12, title, "bold");
  } else { // too long for the panel: in two lines
    svg::text(out, kLeft, 8, "start", 12, title.substr(0, comma), "bold");
    svg::text(out, kLeft, 22, "start", 11, title.substr(comma + 2));
  }
  const std::vector<double> ticks = ticks_of(points);
  if (ticks.empty()) {
    return;
  }
  const double low = std::log(ticks.front());
  const double high = std::log(ticks.back());
  const auto x_of = [](double percent) { return kLeft + kPlotWidth * percent / 100; };
  const auto y_of = [&](double ms) { return bottom - kPlotHeight * (std::log(ms) - low) / (high - low); };
  for (const double tick : ticks) {
    char label[32];
    std::snprintf(label, sizeof label, "%g", tick);
    svg::line(out, kLeft, y_of(tick), kLeft + kPlotWidth, y_of(tick), svg::kGrid, 0.6, "", 0.5);
    svg::text(out, kLeft - 6, y_of(tick) + 4, "end", 11, label);
  }
  for (const int percent : {0, 25, 50, 75, 100}) {
    svg::line(out, x_of(percent), bottom, x_of(percent), bottom + 4, svg::kGrid, 1, "", 1);
    svg::text(out, x_of(percent), bottom + 17, "middle", 11, std::to_string(percent));
  }
  svg::text(out, kLeft + kPlotWidth / 2, bottom + 33, "middle", 11, "% of layers on the device");
  out << "<text transform='translate(14 " << svg::number(kAbove + kPlotHeight / 2)
      << ") rotate(-90)' text-anchor='middle' font-size='11' fill='" << svg::kText << "'>ms a call</text>\n";
  for (std::size_t series = 0; series < kSeries; ++series) {
    const Style& style = kStyles[series];
    out << "<polyline fill='none' stroke='" << style.color << "' stroke-width='" << style.width << "' stroke-opacity='"
        << style.opacity << "' stroke-dasharray='" << (*style.dashes ? style.dashes : "none") << "' points='";
    for (const Point& point : points[series]) {
      out << svg::number(x_of(point.percent)) << ',' << svg::number(y_of(point.ms)) << ' ';
    }
    out << "'/>\n";
    for (const Point& point : points[series]) {
      if (style.marks) {
        mark(out, x_of(point.percent), y_of(point.ms), style);
      }
    }
  }
}

} // namespace

std::string to_svg(const Report& report) {
  const Setup& setup = report.setup;
  if (!report.errors.empty()) {
    return errors_svg(report.errors, "Predicted and measured times, " + (setup.host_only() ? setup.cpu : setup.gpu));
  }
  const std::size_t count = report.tables.size();
  const int columns = static_cast<int>(std::clamp<std::size_t>(count, 2, kColumns)); // the heading takes two
  const double width = columns * kPanelWidth;
  const double height = kTop + std::ceil(static_cast<double>(count) / columns) * kPanelHeight;
  std::ostringstream out;
  svg::begin(out, width, height, "Time of a call by share of the layers on the device");
  svg::text(out, width - 18, 26, "end", 11,
            setup.host_only()
                ? "host only: sizes reduced, not comparable with the record"
                : setup.gpu + ", link " + svg::number(setup.link_bytes_per_us / 1e3) + " GB/s, " + setup.date);
  std::vector<bool> shown(kSeries, false);
  for (std::size_t i = 0; i < count; ++i) {
    const TableResult& table = report.tables[i];
    const auto points = points_of(table);
    for (std::size_t series = 0; series < kSeries; ++series) {
      shown[series] = shown[series] || !points[series].empty();
    }
    const int column = static_cast<int>(i) % columns;
    const int row = static_cast<int>(i) / columns;
    out << "<g transform='translate(" << column * kPanelWidth << ' ' << kTop + row * kPanelHeight << ")'>\n";
    panel(out, table.stack.title, points);
    out << "</g>\n";
  }
  legend(out, shown);
  svg::end(out);
  return out.str();
}

} // namespace offload::tools
