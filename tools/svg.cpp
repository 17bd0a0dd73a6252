#include <tools/svg.h>

#include <cmath>
#include <cstdio>

#include <offload/core/printable.h>

namespace offload::tools::svg {

std::string escape(const std::string& text) {
  std::string out;
  for (const char c : printable(text)) {
    out += c == '&' ? "&amp;" : c == '<' ? "&lt;" : c == '>' ? "&gt;" : std::string(1, c);
  }
  return out;
}

std::string number(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.1f", value);
  return text;
}

void begin(std::ostream& out, double width, double height, const std::string& heading) {
  out << "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 " << width << ' ' << height << "' width='" << width
      << "' height='" << height << "' font-family='system-ui, DejaVu Sans, Helvetica, Arial, sans-serif'>\n";
  text(out, 20, 26, "start", 16, heading, "bold");
}

void end(std::ostream& out) { out << "</svg>\n"; }

void text(std::ostream& out, double x, double y, const char* anchor, double size, const std::string& what,
          const char* weight) {
  out << "<text x='" << number(x) << "' y='" << number(y) << "' text-anchor='" << anchor << "' font-size='" << size
      << "' font-weight='" << weight << "' fill='" << kText << "'>" << escape(what) << "</text>\n";
}

void line(std::ostream& out, double x1, double y1, double x2, double y2, const char* color, double width,
          const char* dashes, double opacity) {
  out << "<line x1='" << number(x1) << "' y1='" << number(y1) << "' x2='" << number(x2) << "' y2='" << number(y2)
      << "' stroke='" << color << "' stroke-width='" << width << "' stroke-opacity='" << opacity
      << "' stroke-dasharray='" << (*dashes ? dashes : "none") << "'/>\n";
}

double tick_step(double axis, int most) {
  if (!(axis > 0)) {
    return 1;
  }
  const double decade = std::pow(10, std::floor(std::log10(axis / most)));
  for (const double step : {1.0, 2.0, 5.0}) {
    if (axis / (step * decade) <= most) {
      return step * decade;
    }
  }
  return 10 * decade;
}

std::vector<double> log_ticks(double least, double most) {
  std::vector<double> ticks;
  if (least <= 0 || most <= 0) {
    return ticks;
  }
  for (double decade = std::pow(10, std::floor(std::log10(least))); ticks.empty() || ticks.back() < most;
       decade *= 10) {
    for (const double step : {1.0, 2.0, 5.0}) {
      if (ticks.empty() || ticks.back() < most) {
        ticks.push_back(decade * step);
      }
      if (ticks.size() > 1 && ticks[1] <= least) {
        ticks.erase(ticks.begin());
      }
    }
  }
  if (ticks.size() == 1) {
    ticks.push_back(ticks.front() * 10);
  }
  return ticks;
}

} // namespace offload::tools::svg
