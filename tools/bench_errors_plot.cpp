#include <tools/bench_errors_report.h>

#include <algorithm>
#include <cmath>
#include <sstream>

#include <offload/bytes.h>
#include <tools/numbers.h>
#include <tools/plot_axes.h>
#include <tools/svg.h>

namespace offload::tools {

namespace {

/// Both axes: the same times, so that what was predicted rightly lies on the diagonal.
class TimeAxes {
 public:
  static constexpr double kSide = 480; // of the plot, which is a square
  static constexpr double kLeft = PlotAxes::kLeft;
  static constexpr double kTop = PlotAxes::kTop;
  static constexpr double kBottom = kTop + kSide;

  explicit TimeAxes(std::vector<double> ticks) : ticks_(std::move(ticks)) {}

  double x_of(double us) const { return kLeft + kSide * share(us / 1e3); }
  double y_of(double us) const { return kBottom - kSide * share(us / 1e3); }

  void draw(std::ostream& out) const {
    for (const double tick : ticks_) {
      const std::string label = number("%g", tick);
      const double x = x_of(tick * 1e3);
      const double y = y_of(tick * 1e3);
      svg::line(out, kLeft, y, kLeft + kSide, y, svg::kGrid, 0.6, "", 0.5);
      svg::line(out, x, kTop, x, kBottom, svg::kGrid, 0.6, "", 0.5);
      svg::text(out, kLeft - 8, y + 4, "end", 11, label);
      svg::text(out, x, kBottom + 17, "middle", 11, label);
    }
    svg::line(out, kLeft, kBottom, kLeft + kSide, kTop, svg::kText, 1.2, "", 1);
    svg::text(out, kLeft + kSide / 2, kBottom + 38, "middle", 11, "measured, ms a call");
    svg::text(out, kLeft, kTop - 8, "middle", 11, "predicted, ms");
  }

 private:
  double share(double ms) const {
    return (std::log(ms) - std::log(ticks_.front())) / (std::log(ticks_.back()) - std::log(ticks_.front()));
  }

  std::vector<double> ticks_;
};

struct Predictions {
  std::optional<Prediction> ErrorRow::* which;
  const char* color;
  const char* name;
};
constexpr Predictions kBefore{&ErrorRow::before, "#d9534f", "before the first call"};
constexpr Predictions kAfter{&ErrorRow::after, "#2f86d6", "after two calls"};

bool is_drawn(const ErrorRow& row, const Predictions& series) {
  return row.was_measured() && row.measured_us > 0 && row.*series.which && (row.*series.which)->time_us > 0;
}

std::vector<double> ticks_of(const std::vector<ErrorRow>& rows) {
  double least = INFINITY;
  double most = 0;
  for (const ErrorRow& row : rows) {
    for (const Predictions& series : {kBefore, kAfter}) {
      if (is_drawn(row, series)) {
        const double predicted_us = (row.*series.which)->time_us;
        least = std::min({least, row.measured_us, predicted_us});
        most = std::max({most, row.measured_us, predicted_us});
      }
    }
  }
  return svg::log_ticks(least / 1e3, most / 1e3);
}

void draw_points(std::ostream& out, const TimeAxes& axes, const std::vector<ErrorRow>& rows,
                 const Predictions& series) {
  for (const ErrorRow& row : rows) {
    if (!is_drawn(row, series)) {
      continue;
    }
    const double predicted_us = (row.*series.which)->time_us;
    out << "<circle cx='" << svg::number(axes.x_of(row.measured_us)) << "' cy='" << svg::number(axes.y_of(predicted_us))
        << "' r='3.5' fill='" << series.color << "' fill-opacity='0.75'><title>"
        << svg::escape(row.model + ", " + row.shape + ", " + format_bytes(row.budget_bytes) + ": predicted " +
                       exact_ms(predicted_us) + ", measured " + exact_ms(row.measured_us))
        << "</title></circle>\n";
  }
}

} // namespace

std::string errors_svg(const std::vector<ErrorRow>& rows, const std::string& heading) {
  std::ostringstream out;
  svg::begin(out, TimeAxes::kLeft + TimeAxes::kSide + 30, TimeAxes::kBottom + 56, heading);
  double x = TimeAxes::kLeft;
  for (const Predictions& series : {kBefore, kAfter}) {
    out << "<circle cx='" << svg::number(x) << "' cy='48' r='4' fill='" << series.color << "'/>\n";
    svg::text(out, x + 10, 52, "start", 12, series.name);
    x += 190;
  }
  const std::vector<double> ticks = ticks_of(rows);
  if (!ticks.empty()) {
    const TimeAxes axes(ticks);
    axes.draw(out);
    draw_points(out, axes, rows, kBefore);
    draw_points(out, axes, rows, kAfter);
  }
  svg::end(out);
  return out.str();
}

} // namespace offload::tools
