#include <tools/plan_timeline.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <nlohmann/json.hpp>
#include <sstream>
#include <vector>

#include <offload/bytes.h>
#include <tools/numbers.h>
#include <tools/svg.h>

namespace offload::tools {

namespace {

struct Style {
  Timeline::Lane lane;
  const char* color;
  const char* what;
};
constexpr std::array<Style, 4> kLanes = {
    {{Timeline::Lane::link, "#2f86d6", "link: weights are copied"},
     {Timeline::Lane::compute, "#4c9a52", "compute: steps that read weights"},
     {Timeline::Lane::stall, "#d9534f", "stall: nothing is computed, the next step waits for copies"},
     {Timeline::Lane::host, "#8a6fbf", "host: the thread enqueues"}}};

constexpr double kWidth = 1200;
constexpr double kLeft = 84;
constexpr double kPlotWidth = kWidth - kLeft - 20;
constexpr double kTop = 76; // of the first lane
constexpr double kLaneHeight = 34;
constexpr double kLaneStep = 46;

/// The lanes of the picture: the host's only where it is known.
std::vector<Style> lanes_of(const Timeline& timeline) {
  std::vector<Style> lanes(kLanes.begin(), kLanes.end());
  if (timeline.busy_us(Timeline::Lane::host) == 0) {
    lanes.pop_back();
  }
  return lanes;
}

/// "a.weight", or "a.weight and 3 more".
std::string name_of(const Timeline::Entry& entry) {
  const std::size_t count = entry.weights.size();
  if (count == 0) {
    return entry.lane == Timeline::Lane::host ? "before the first weight" : "no weights, or rows in place";
  }
  return entry.weights.front() + (count > 1 ? " and " + std::to_string(count - 1) + " more" : "");
}

/// Entries that are drawn as one.
struct Box {
  double x;
  double end;
  double us;
  std::size_t count;
  std::uint64_t bytes;
  std::string first;
  std::string last;
};

/// What is narrower than a unit joins what comes less than half a unit before it, and is as narrow.
std::vector<Box> boxes_of(const Timeline& timeline, Timeline::Lane lane) {
  constexpr double kNarrow = 1;
  constexpr double kNear = 0.5;
  std::vector<Box> boxes;
  bool last_is_narrow = false;
  for (const Timeline::Entry& entry : timeline.entries) {
    if (entry.lane != lane) {
      continue;
    }
    const double x = kLeft + kPlotWidth * entry.begin_us / timeline.time_us;
    const double width = kPlotWidth * entry.us / timeline.time_us;
    const bool is_narrow = width < kNarrow;
    if (is_narrow && last_is_narrow && x - boxes.back().end < kNear) {
      Box& box = boxes.back();
      box.end = x + width;
      box.us += entry.us;
      box.bytes += entry.bytes;
      box.last = name_of(entry);
      ++box.count;
    } else {
      boxes.push_back({x, x + width, entry.us, 1, entry.bytes, name_of(entry), name_of(entry)});
    }
    last_is_narrow = is_narrow;
  }
  return boxes;
}

std::string describe(const Box& box) {
  const std::string what =
      box.count == 1 ? box.first : std::to_string(box.count) + " entries, from " + box.first + " to " + box.last;
  return what + ": " + number("%.3g ms", box.us / 1e3) + ", " + format_bytes(box.bytes);
}

void draw_lane(std::ostream& out, const Timeline& timeline, const Style& style, double y) {
  svg::text(out, kLeft - 8, y + kLaneHeight / 2 + 4, "end", 12, to_string(style.lane), "bold");
  bool is_odd = false; // neighbours have two shades
  for (const Box& box : boxes_of(timeline, style.lane)) {
    const double width = std::max(box.end - box.x, 0.3);
    out << "<g><title>" << svg::escape(describe(box)) << "</title><rect x='" << svg::number(box.x) << "' y='"
        << svg::number(y) << "' width='" << width << "' height='" << kLaneHeight << "' fill='" << style.color
        << "' fill-opacity='" << (is_odd ? 0.65 : 0.95) << "'/>\n";
    constexpr double kLetter = 6;
    constexpr std::size_t kLegible = 12;
    const auto room = static_cast<std::size_t>(width / kLetter);
    if (box.count == 1 && room >= std::min(box.first.size(), kLegible)) {
      const std::string label =
          box.first.size() > room ? ".." + box.first.substr(box.first.size() - room + 2) : box.first;
      out << "<text x='" << svg::number(box.x + width / 2) << "' y='" << svg::number(y + kLaneHeight / 2 + 4)
          << "' text-anchor='middle' font-size='10' fill='#ffffff'>" << svg::escape(label) << "</text>\n";
    }
    out << "</g>\n";
    is_odd = !is_odd;
  }
}

void draw_axis(std::ostream& out, double time_us, double bottom, const std::string& origin) {
  const double step = svg::tick_step(time_us, 12);
  for (int tick = 0; tick * step <= time_us; ++tick) {
    const double x = kLeft + kPlotWidth * (tick * step) / time_us;
    svg::line(out, x, kTop - 6, x, bottom, svg::kGrid, 0.6, "", 0.5);
    std::array<char, 32> label{};
    std::snprintf(label.data(), label.size(), "%g", tick * step / 1e3);
    svg::text(out, x, bottom + 16, "middle", 11, label.data());
  }
  svg::text(out, kLeft + kPlotWidth / 2, bottom + 34, "middle", 11, "ms since " + origin);
}

} // namespace

std::string to_svg(const Timeline& timeline, const std::string& heading, const std::string& origin) {
  const std::vector<Style> lanes = lanes_of(timeline);
  const double bottom = kTop + kLaneStep * static_cast<double>(lanes.size());
  std::ostringstream out;
  svg::begin(out, kWidth, bottom + 48, heading + ": " + number("%.3g ms", timeline.time_us / 1e3));
  double x = 20;
  for (const Style& style : lanes) {
    const double share = timeline.time_us > 0 ? timeline.busy_us(style.lane) / timeline.time_us : 0;
    const std::string what =
        std::string(style.what) + ", " + std::to_string(std::lround(share * 100)) + "% of the time";
    out << "<rect x='" << svg::number(x) << "' y='42' width='12' height='12' fill='" << style.color << "'/>\n";
    svg::text(out, x + 18, 52, "start", 12, what);
    x += 40 + 6.4 * static_cast<double>(what.size());
  }
  if (timeline.time_us > 0) {
    draw_axis(out, timeline.time_us, bottom, origin);
  }
  for (std::size_t i = 0; i < lanes.size(); ++i) {
    draw_lane(out, timeline, lanes[i], kTop + kLaneStep * static_cast<double>(i));
  }
  svg::end(out);
  return out.str();
}

std::string to_trace(const Timeline& timeline, const std::string& heading) {
  using Json = nlohmann::ordered_json;
  Json events = Json::array();
  events.push_back({{"name", "process_name"}, {"ph", "M"}, {"pid", 1}, {"args", {{"name", heading}}}});
  for (const Style& style : lanes_of(timeline)) {
    const auto thread = static_cast<int>(style.lane) + 1;
    events.push_back({{"name", "thread_name"},
                      {"ph", "M"},
                      {"pid", 1},
                      {"tid", thread},
                      {"args", {{"name", to_string(style.lane)}}}});
    events.push_back(
        {{"name", "thread_sort_index"}, {"ph", "M"}, {"pid", 1}, {"tid", thread}, {"args", {{"sort_index", thread}}}});
  }
  for (const Timeline::Entry& entry : timeline.entries) {
    events.push_back({{"name", name_of(entry)},
                      {"cat", to_string(entry.lane)},
                      {"ph", "X"},
                      {"ts", entry.begin_us},
                      {"dur", entry.us},
                      {"pid", 1},
                      {"tid", static_cast<int>(entry.lane) + 1},
                      {"args", {{"weights", entry.weights}, {"bytes", entry.bytes}}}});
  }
  const Json json = {{"displayTimeUnit", "ms"}, {"traceEvents", std::move(events)}};
  return json.dump(1, ' ', false, Json::error_handler_t::replace); // names may be any bytes
}

} // namespace offload::tools
