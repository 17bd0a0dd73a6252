#include <tools/monotone.h>

#include <nlohmann/json.hpp>
#include <ostream>

#include <offload/bytes.h>
#include <tools/bench_errors_report.h>
#include <tools/numbers.h>

namespace offload::tools {

namespace {

using Json = nlohmann::ordered_json;

constexpr const char* kHowToReadRises = R"(
## Time as the budget grows

Slower: how many budgets take longer than some smaller one, of how many, and the worst of them by its factor. Predicted over the
whole range before the first call, in equal steps; then, at the budgets of the table above, predicted after two calls and measured,
where the noise of measuring counts, too. Unused: the most of a budget that is neither for weights nor ring nor reserve though
something streams.

| model | shape | step | predicted, whole range | predicted, after | measured | unused |
|---|---|---:|---|---|---|---:|
)";

/// What the rows of one shape say.
struct OfRows {
  Rises predicted;
  Rises measured;
  std::uint64_t most_unused = 0;
  std::uint64_t unused_of = 0; ///< the budget in which that is
};

OfRows rows_of(const WholeRange& range, const std::vector<ErrorRow>& rows) {
  OfRows found;
  std::vector<SweepPoint> predicted;
  std::vector<SweepPoint> measured;
  for (const ErrorRow& row : rows) {
    if (row.model != range.model || row.shape != range.shape || !row.was_measured() || !row.after) {
      continue;
    }
    predicted.push_back({row.budget_bytes, row.after->time_us, row.after->streamed_bytes, row.bound});
    measured.push_back({row.budget_bytes, row.measured_us, row.streamed_bytes, row.bound});
    if (row.after->streamed_bytes > 0 && row.unused_bytes > found.most_unused) {
      found.most_unused = row.unused_bytes;
      found.unused_of = row.budget_bytes;
    }
  }
  found.predicted = find_rises(predicted);
  found.measured = find_rises(measured);
  return found;
}

/// "2 of 20, the worst 1.004 at 3 MiB (over 2 MiB)".
std::string describe(const Rises& rises) {
  std::string text = std::to_string(rises.slower) + " of " + std::to_string(rises.points);
  if (rises.greatest) {
    text += ", the worst " + number("%.4f", rises.greatest->factor()) + " at " + std::to_string(rises.greatest->vram) +
            " bytes over " + std::to_string(rises.greatest->faster_vram);
  }
  return text;
}

Json json_of(const Rises& rises) {
  Json json = {{"points", rises.points}, {"slower", rises.slower}, {"greatest", nullptr}};
  if (rises.greatest) {
    json["greatest"] = {{"vram", rises.greatest->vram},
                        {"time_us", rises.greatest->time_us},
                        {"faster_vram", rises.greatest->faster_vram},
                        {"faster_us", rises.greatest->faster_us}};
  }
  return json;
}

} // namespace

Rises find_rises(const std::vector<SweepPoint>& points) {
  constexpr double kNone = 1 + 1e-6;
  Rises rises;
  rises.points = points.size();
  const SweepPoint* fastest = nullptr;
  for (const SweepPoint& point : points) {
    if (fastest != nullptr && point.time_us > fastest->time_us * kNone) {
      ++rises.slower;
      const Rise rise{fastest->vram, fastest->time_us, point.vram, point.time_us};
      if (!rises.greatest || rise.factor() > rises.greatest->factor()) {
        rises.greatest = rise;
      }
    }
    if (fastest == nullptr || point.time_us < fastest->time_us) {
      fastest = &point;
    }
  }
  return rises;
}

void write_monotone(const std::vector<WholeRange>& ranges, const std::vector<ErrorRow>& rows, std::ostream& out) {
  out << kHowToReadRises;
  for (const WholeRange& range : ranges) {
    const OfRows of = rows_of(range, rows);
    out << "| " << cell(range.model) << " | " << cell(range.shape) << " | "
        << format_bytes(static_cast<std::uint64_t>(range.step_bytes)) << " | "
        << (range.error.empty() ? describe(range.rises) : "**" + cell(range.error) + "**") << " | "
        << describe(of.predicted) << " | " << describe(of.measured) << " | " << format_bytes(of.most_unused)
        << (of.most_unused > 0 ? " of " + format_bytes(of.unused_of) : "") << " |\n";
  }
}

Json monotone_json(const std::vector<WholeRange>& ranges, const std::vector<ErrorRow>& rows) {
  Json json = Json::array();
  for (const WholeRange& range : ranges) {
    const OfRows of = rows_of(range, rows);
    json.push_back({{"model", range.model},
                    {"shape", range.shape},
                    {"least", range.least},
                    {"most", range.most},
                    {"step_bytes", range.step_bytes},
                    {"planning_s", range.seconds},
                    {"whole_range", json_of(range.rises)},
                    {"after", json_of(of.predicted)},
                    {"measured", json_of(of.measured)},
                    {"most_unused_bytes", of.most_unused},
                    {"unused_of_budget", of.unused_of},
                    {"error", range.error}});
  }
  return json;
}

} // namespace offload::tools
