#pragma once

#include <cstddef>
#include <cstdint>
#include <ostream>
#include <string>
#include <vector>

#include <offload/sweep.h>

namespace offload::tools {

/// "20.125 ms".
std::string exact_ms(double us);

/// The axes of a plot of time against budget: from the first budget of all curves to the last, and from 0 to the
/// slowest.
class PlotAxes {
 public:
  // Of a picture.
  static constexpr double kWidth = 900;
  static constexpr double kHeight = 480;
  static constexpr double kLeft = 70;
  static constexpr double kTop = 76;
  static constexpr double kPlotWidth = kWidth - kLeft - 30;
  static constexpr double kPlotHeight = kHeight - kTop - 56;
  static constexpr double kBottom = kTop + kPlotHeight;

  explicit PlotAxes(const std::vector<Sweep>& sweeps);

  std::uint64_t first() const { return first_; }
  std::uint64_t last() const { return last_; }
  double most_us() const { return most_us_; }

  /// Where a budget lies, of the way from the first to the last.
  double share(std::uint64_t vram) const {
    return static_cast<double>(vram - first_) / static_cast<double>(last_ - first_);
  }
  double x_of(std::uint64_t vram) const { return kLeft + kPlotWidth * share(vram); }
  double y_of(double us) const { return kBottom - kPlotHeight * us / most_us_; }

  /// A picture with these axes; svg::end() ends it.
  void begin(std::ostream& out, const std::string& heading) const;
  void draw_curve(std::ostream& out, const Sweep& sweep, const char* color) const;

 private:
  std::uint64_t first_;
  std::uint64_t last_;
  double most_us_ = 1e-3;
};

/// A plot in plain characters.
class CharacterPlot {
 public:
  /// `columns` wide.
  CharacterPlot(const PlotAxes& axes, std::size_t columns);

  void draw_curve(const Sweep& sweep, char with);
  void mark(std::uint64_t vram, double us, char with);

  /// With its axes, and a line below them.
  std::string text(const std::string& legend) const;

 private:
  char& at(std::size_t column, double us);

  PlotAxes axes_;
  std::size_t width_;
  std::vector<std::string> rows_;
};

} // namespace offload::tools
