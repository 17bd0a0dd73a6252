#pragma once

#include <ostream>
#include <string>
#include <vector>

namespace offload::tools::svg {

// Greys of middle lightness: plots have no background of their own, and are read on white and on black.
constexpr const char* kText = "#7a7a7a";
constexpr const char* kGrid = "#9a9a9a";

/// `text` as it may stand in an element: without control characters, whoever wrote it.
std::string escape(const std::string& text);

std::string number(double value); ///< a coordinate, with one digit after the point

/// A plot of `width` by `height` units, with a heading.
void begin(std::ostream& out, double width, double height, const std::string& heading);
void end(std::ostream& out);

void text(std::ostream& out, double x, double y, const char* anchor, double size, const std::string& what,
          const char* weight = "normal");

/// `dashes` may be empty.
void line(std::ostream& out, double x1, double y1, double x2, double y2, const char* color, double width,
          const char* dashes, double opacity);

/// What `axis` is divided by into at most `most` parts: 1, 2 or 5 times a power of ten.
double tick_step(double axis, int most);

/// 1, 2 and 5 times powers of ten, at least two: the first is at or below `least`, the last at or above `most`. None
/// where these are not positive.
std::vector<double> log_ticks(double least, double most);

} // namespace offload::tools::svg
