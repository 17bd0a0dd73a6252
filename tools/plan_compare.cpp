#include <tools/plan_compare.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <sstream>

#include <offload/bytes.h>
#include <offload/core/printable.h>
#include <offload/error.h>
#include <tools/machines.h>
#include <tools/plan_sweep.h>
#include <tools/plot_axes.h>
#include <tools/svg.h>

namespace offload::tools {

namespace {

constexpr std::array<const char*, 8> kColors = {"#2f86d6", "#c8553d", "#4c9a52", "#8a6fc0",
                                                "#b58900", "#2aa198", "#d33682", "#7a7a7a"};

const char* color_of(std::size_t machine) { return kColors[machine % kColors.size()]; }

bool is_sweep(const std::vector<Sweep>& machines) {
  return std::any_of(machines.begin(), machines.end(), [](const Sweep& sweep) { return sweep.points.size() > 1; });
}

/// Machines with one point each.
std::string to_bars(const std::vector<Sweep>& machines) {
  constexpr double kLeft = 190;
  constexpr double kLongest = 480;
  constexpr double kRow = 34;
  double slowest = 1e-3;
  for (const Sweep& machine : machines) {
    slowest = std::max(slowest, machine.points.front().time_us);
  }
  std::ostringstream out;
  svg::begin(out, PlotAxes::kWidth, 60 + kRow * static_cast<double>(machines.size()), "Time of a call on each machine");
  double y = 48;
  for (std::size_t i = 0; i < machines.size(); ++i) {
    const SweepPoint& point = machines[i].points.front();
    const double length = kLongest * point.time_us / slowest;
    svg::text(out, kLeft - 10, y + 15, "end", 12, machines[i].machine);
    out << "<rect x='" << svg::number(kLeft) << "' y='" << svg::number(y) << "' width='" << svg::number(length)
        << "' height='20' fill='" << color_of(i) << "'/>\n";
    svg::text(out, kLeft + length + 8, y + 15, "start", 12,
              exact_ms(point.time_us) + ", " + to_string(point.bound) + ", " + format_bytes(point.vram));
    y += kRow;
  }
  svg::end(out);
  return out.str();
}

} // namespace

void Comparison::add_to(CLI::App& app) {
  app.add_option("--compare", given_,
                 "several machines, separated by commas: names that --machines lists, or files as `bench --profile` "
                 "prints them");
}

std::vector<MachineProfile> Comparison::machines() const {
  std::vector<MachineProfile> machines;
  std::stringstream list(*given_);
  for (std::string name; std::getline(list, name, ',');) {
    if (std::any_of(machines.begin(), machines.end(), [&](const MachineProfile& m) { return m.name == name; })) {
      throw InputError("--compare " + *given_ + ": " + name + " is named twice");
    }
    machines.push_back(find_machine(name, "--compare"));
    machines.back().name = name;
  }
  if (machines.size() < 2) {
    throw InputError("--compare " + *given_ + ": give two machines or more, separated by commas, as in " +
                     "--compare rtx3060,rtx4090; of one, --machine");
  }
  return machines;
}

std::string to_table(const std::vector<Sweep>& machines) {
  std::ostringstream out;
  if (is_sweep(machines)) {
    for (const Sweep& sweep : machines) {
      out << to_table(sweep);
    }
    return out.str();
  }
  std::size_t width = 7;
  for (const Sweep& machine : machines) {
    width = std::max(width, printable(machine.machine).size());
  }
  const auto fastest = std::min_element(machines.begin(), machines.end(), [](const Sweep& a, const Sweep& b) {
    return a.points.front().time_us < b.points.front().time_us;
  });
  out << "Time of a call, on " << machines.size() << " machines\n  machine" << std::string(width - 7, ' ')
      << "      budget            time  MiB streamed  of the fastest  bound by\n";
  for (const Sweep& machine : machines) {
    const SweepPoint& point = machine.points.front();
    const std::string name = printable(machine.machine);
    std::array<char, 96> row{};
    std::snprintf(row.data(), row.size(), "  %10s  %14s  %12.1f  %14.2f  %s", format_bytes(point.vram).c_str(),
                  exact_ms(point.time_us).c_str(), static_cast<double>(point.streamed_bytes) / (1 << 20),
                  point.time_us / std::max(fastest->points.front().time_us, 1e-9), to_string(point.bound));
    out << "  " << name << std::string(width - name.size(), ' ') << row.data() << '\n';
  }
  return out.str();
}

std::string to_json(const std::vector<Sweep>& machines) {
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (const Sweep& sweep : machines) {
    list.push_back(nlohmann::ordered_json::parse(to_json(sweep)));
  }
  return list.dump(2) + "\n";
}

std::string to_svg(const std::vector<Sweep>& machines) {
  if (!is_sweep(machines)) {
    return to_bars(machines);
  }
  const PlotAxes axes(machines);
  std::ostringstream out;
  axes.begin(out, "Time of a call against vram_budget");
  for (std::size_t i = 0; i < machines.size(); ++i) {
    const double y = PlotAxes::kTop + 14 + 17 * static_cast<double>(i); // at the right, where curves have fallen
    const double right = PlotAxes::kLeft + PlotAxes::kPlotWidth;
    out << "<rect x='" << svg::number(right - 18) << "' y='" << svg::number(y - 6) << "' width='14' height='4' fill='"
        << color_of(i) << "'/>\n";
    svg::text(out, right - 26, y, "end", 12, machines[i].machine);
    axes.draw_curve(out, machines[i], color_of(i));
    for (const SweepPoint& point : machines[i].points) {
      out << "<circle cx='" << svg::number(axes.x_of(point.vram)) << "' cy='" << svg::number(axes.y_of(point.time_us))
          << "' r='2.5' fill='" << color_of(i) << "'><title>"
          << svg::escape(machines[i].machine + ", " + format_bytes(point.vram) + ": " + exact_ms(point.time_us) +
                         ", bound by " + to_string(point.bound))
          << "</title></circle>\n";
    }
  }
  svg::end(out);
  return out.str();
}

std::string to_plot(const std::vector<Sweep>& machines, std::size_t columns) {
  CharacterPlot plot(PlotAxes(machines), columns);
  std::string legend = "budget;";
  for (std::size_t i = 0; i < machines.size(); ++i) {
    const auto letter = static_cast<char>('a' + i % 26);
    plot.draw_curve(machines[i], letter);
    legend += std::string(" ") + letter + ": " + printable(machines[i].machine);
  }
  return plot.text(legend);
}

} // namespace offload::tools
