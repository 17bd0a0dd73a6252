#include <offload/placement.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <cstdio>
#include <iomanip>
#include <map>
#include <nlohmann/json.hpp>
#include <ostream>

#include <offload/bytes.h>
#include <offload/core/printable.h>

namespace offload {

const char* to_string(Evidence evidence) {
  switch (evidence) {
    case Evidence::none:
      return "default";
    case Evidence::sizes:
      return "sizes";
    case Evidence::calls:
      return "calls";
  }
  return "unknown";
}

const char* to_string(Mode mode) {
  switch (mode) {
    case Mode::resident:
      return "resident";
    case Mode::streamed:
      return "streamed";
    case Mode::in_place:
      return "in place";
  }
  return "unknown";
}

namespace {

std::string modes_of(const PlacedWeight& weight) {
  std::string modes;
  for (const Segment& segment : weight.segments) {
    modes += (modes.empty() ? "" : " + ") + std::string(to_string(segment.mode));
  }
  return modes;
}

/// The operators of a weight, each once: "aten::embedding (rows), aten::linear x2".
std::string uses_of(const PlacedWeight& weight) {
  std::vector<std::pair<std::string, int>> counts;
  for (const Use& use : weight.uses) {
    const std::string name = use.op + (use.taken == "product" ? "" : " (" + use.taken + ")");
    const auto same = std::find_if(counts.begin(), counts.end(), [&](const auto& c) { return c.first == name; });
    if (same == counts.end()) {
      counts.emplace_back(name, 1);
    } else {
      ++same->second;
    }
  }
  std::string text;
  for (const auto& [use, count] : counts) {
    text += (text.empty() ? "" : ", ") + use + (count > 1 ? " x" + std::to_string(count) : "");
  }
  return text.empty() ? "not used" : text;
}

std::string pattern_of(const std::string& name) {
  std::string pattern;
  for (std::size_t i = 0; i < name.size(); ++i) {
    const bool digit = std::isdigit(static_cast<unsigned char>(name[i])) != 0;
    if (!digit) {
      pattern += name[i];
    } else if (pattern.empty() || pattern.back() != '*') {
      pattern += i == 0 || name[i - 1] == '.' || name[i - 1] == '_' ? '*' : name[i];
    }
  }
  return pattern;
}

struct Row {
  std::string name;
  int weights = 1;
  std::uint64_t bytes = 0;
  std::string mode;
  std::string uses;
};

void print_row(std::ostream& out, std::size_t width, const Row& row) {
  out << "  " << std::left << std::setw(static_cast<int>(width)) << row.name << "  " << std::right << std::setw(7)
      << row.weights << "  " << std::setw(9) << format_bytes(row.bytes) << "  " << std::left << std::setw(9) << row.mode
      << "  " << row.uses << '\n';
}

double calls_per_second(const PredictedRound& round) {
  return round.time_us > 0 ? round.callers / round.time_us * 1e6 : 0;
}

std::string milliseconds(double us) {
  std::array<char, 32> text{};
  std::snprintf(text.data(), text.size(), "%.3f ms", us / 1e3);
  return text.data();
}

/// A line for several callers.
std::string describe(const PredictedRound& round, const Budget& budget) {
  if (round.callers == 1) {
    return "";
  }
  std::array<char, 32> calls{};
  std::snprintf(calls.data(), calls.size(), "%.1f calls/s", calls_per_second(round));
  return "  " + std::to_string(round.callers) + " callers make a call each in " + milliseconds(round.time_us) + ", " +
         calls.data() + ", " + format_bytes(round.streamed_bytes) + " streamed a call" +
         (budget.reserve == 0 ? "" : "; room for " + std::to_string(round.lanes) + " at the same time") + "\n";
}

} // namespace

std::ostream& operator<<(std::ostream& out, const Placement& placement) {
  const auto flags = out.flags();
  const Budget& budget = placement.budget;
  out << "Placement on " << placement.device << " (costs of " << placement.machine << ")\n"
      << "  budget    " << format_bytes(budget.vram) << "; the smallest that works is " << format_bytes(budget.minimum)
      << " (" << budget.minimum << " bytes)\n"
      << "  resident  " << format_bytes(budget.resident) << " of weights, " << format_bytes(budget.fixed)
      << " that must stay\n"
      << "  ring      " << format_bytes(budget.ring) << '\n'
      << "  reserve   " << format_bytes(budget.reserve) << " for workspaces and activations, "
      << (budget.reserve_by == Evidence::calls   ? "measured"
          : budget.reserve_by == Evidence::sizes ? "by the sizes of example calls"
                                                 : "a default until a call has been measured")
      << '\n'
      << (budget.outside == 0 ? ""
                              : "  beside it " + format_bytes(budget.outside) +
                                    " are in use: CUDA's context, kernels, handles, others; models load more kernels\n")
      << "  host      " << format_bytes(budget.host) << ", " << format_bytes(budget.pinned) << " of it pinned; "
      << format_bytes(budget.file) << " stay on the file\n"
      << "  predicted " << milliseconds(placement.predicted.time_us) << " a call, "
      << format_bytes(placement.predicted.streamed_bytes) << " streamed, peak "
      << format_bytes(placement.predicted.peak_device_bytes) << '\n'
      << describe(placement.predicted.round, budget);

  // Layers that repeat are one line: their numbers are written as a star.
  std::vector<Row> rows;
  for (const PlacedWeight& weight : placement.weights) {
    Row row{pattern_of(printable(weight.name)), 1, weight.bytes, modes_of(weight), uses_of(weight)};
    for (const std::string& alias : weight.aliases) {
      row.name += " = " + pattern_of(printable(alias));
    }
    const auto same = std::find_if(rows.begin(), rows.end(), [&](const Row& r) {
      return r.name == row.name && r.mode == row.mode && r.uses == row.uses;
    });
    if (same == rows.end()) {
      rows.push_back(std::move(row));
    } else {
      ++same->weights;
      same->bytes += row.bytes;
    }
  }
  std::size_t width = 7;
  for (const Row& row : rows) {
    width = std::max(width, row.name.size());
  }
  out << "  " << std::left << std::setw(static_cast<int>(width)) << "weights"
      << "    count      bytes  mode       used by\n";
  for (const Row& row : rows) {
    print_row(out, width, row);
  }

  std::vector<Resident> because;
  std::vector<int> counts;
  for (const Resident& resident : placement.resident_because) {
    const auto same =
        std::find_if(because.begin(), because.end(), [&](const Resident& r) { return r.because == resident.because; });
    if (same == because.end()) {
      because.push_back(resident);
      counts.push_back(1);
    } else {
      same->bytes += resident.bytes;
      ++counts[same - because.begin()];
    }
  }
  for (std::size_t i = 0; i < because.size(); ++i) {
    out << "  stays: " << counts[i] << (counts[i] == 1 ? " tensor, " : " tensors, ") << format_bytes(because[i].bytes)
        << ", " << because[i].because << (counts[i] == 1 ? ": " + printable(because[i].name) : "") << '\n';
  }
  std::map<std::string, int> unseen;
  for (const std::string& type : placement.unseen) {
    ++unseen[type];
  }
  for (const auto& [type, count] : unseen) {
    out << "  unseen: " << count << (count == 1 ? " object of " : " objects of ") << printable(type)
        << ", whose memory is in no figure here\n";
  }
  for (const std::string& why : placement.unsized) {
    out << "  by graph: " << printable(why) << '\n';
  }
  for (const std::string& rewritten : placement.rewritten) {
    out << "  rewritten: " << printable(rewritten) << '\n';
  }
  out.flags(flags);
  return out;
}

std::string to_json(const Placement& placement) {
  using Json = nlohmann::ordered_json;
  Json weights = Json::array();
  for (const PlacedWeight& weight : placement.weights) {
    Json segments = Json::array();
    for (const Segment& segment : weight.segments) {
      segments.push_back({{"mode", to_string(segment.mode)},
                          {"device", placement.device},
                          {"offset", segment.offset},
                          {"bytes", segment.bytes}});
    }
    Json ops = Json::array();
    Json taken = Json::array();
    for (const Use& use : weight.uses) {
      ops.push_back(use.op);
      taken.push_back(use.taken);
    }
    weights.push_back({{"name", weight.name},
                       {"aliases", weight.aliases},
                       {"bytes", weight.bytes},
                       {"uses", std::move(ops)},
                       {"taken", std::move(taken)},
                       {"segments", std::move(segments)}});
  }
  Json because = Json::array();
  for (const Resident& resident : placement.resident_because) {
    because.push_back({{"name", resident.name}, {"bytes", resident.bytes}, {"because", resident.because}});
  }
  const Budget& budget = placement.budget;
  const Json json = {
      {"device", placement.device},
      {"weights", std::move(weights)},
      {"resident_because", std::move(because)},
      {"rewritten", placement.rewritten},
      {"unseen", placement.unseen},
      {"unsized", placement.unsized},
      {"writes_state", placement.writes_state},
      {"budget",
       {{"vram", budget.vram},
        {"host", budget.host},
        {"minimum", budget.minimum},
        {"fixed", budget.fixed},
        {"resident", budget.resident},
        {"ring", budget.ring},
        {"reserve", budget.reserve},
        {"reserve_by", to_string(budget.reserve_by)},
        {"outside", budget.outside},
        {"pinned", budget.pinned},
        {"file", budget.file}}},
      {"predicted",
       {{"time_us", placement.predicted.time_us},
        {"peak_device_bytes", placement.predicted.peak_device_bytes},
        {"streamed_bytes", placement.predicted.streamed_bytes},
        {"period", placement.predicted.period},
        {"round",
         {{"callers", placement.predicted.round.callers},
          {"lanes", placement.predicted.round.lanes},
          {"time_us", placement.predicted.round.time_us},
          {"calls_per_second", calls_per_second(placement.predicted.round)},
          {"streamed_bytes", placement.predicted.round.streamed_bytes}}}}},
      {"machine", placement.machine},
  };
  return json.dump(2, ' ', false, Json::error_handler_t::replace); // names may be any bytes
}

} // namespace offload
