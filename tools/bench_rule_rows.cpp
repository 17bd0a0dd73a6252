#include <tools/bench_rule_rows.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <ostream>

#include <offload/bytes.h>
#include <tools/bench_errors_report.h>
#include <tools/numbers.h>

namespace offload::tools {

namespace {

using Json = nlohmann::ordered_json;

constexpr const char* kHowToReadRules = R"(
## Which weights stay

Fastest: as the library chooses, in milliseconds a call, measured as in the table of predictions. Again: the same once more when all
others had been measured, over the first. Other columns: how many times as long a call takes with the same engine where other
weights stay, over the mean of those two; in brackets as predicted after two calls.

| model | shape | budget |)";

/// The most that the fastest was behind, over all rows and rules: 1 where it was behind none.
struct Behind {
  double measured = 1;
  double predicted = 1;
};

Behind most_behind(const std::vector<RuleRow>& rows) {
  Behind most;
  for (const RuleRow& row : rows) {
    for (std::size_t rule = 1; rule < kRules.size() && row.was_measured(); ++rule) {
      most.measured = std::max(most.measured, 1 / row.measured_ratio(rule));
      most.predicted = std::max(most.predicted, 1 / row.predicted_ratio(rule));
    }
  }
  return most;
}

} // namespace

double RuleRow::noise() const {
  const auto [less, more] = std::minmax(by_rule[0].measured_us, again_us);
  return more / less - 1;
}

void write_rules(const std::vector<RuleRow>& rows, std::ostream& out) {
  out << kHowToReadRules;
  for (const Rule rule : kRules) {
    out << " " << to_string(rule) << (rule == Rule::fastest ? " | again |" : " |");
  }
  out << "\n|---|---|---:|---:|---:|---:|---:|---:|---:|\n";
  double noise = 0;
  for (const RuleRow& row : rows) {
    out << "| " << cell(row.model) << " | " << cell(row.shape) << " | "
        << (row.budget_bytes > 0 ? format_bytes(row.budget_bytes) : "-") << " | ";
    if (!row.was_measured()) {
      out << "**" << cell(row.error) << "** | - | - | - | - | - |\n";
      continue;
    }
    noise = std::max(noise, row.noise());
    out << ms(row.by_rule[0].measured_us) << " | " << number("%.3f", row.again_us / row.by_rule[0].measured_us) << " |";
    for (std::size_t rule = 1; rule < kRules.size(); ++rule) {
      out << " " << number("%.3f", row.measured_ratio(rule)) << " (" << number("%.3f", row.predicted_ratio(rule))
          << ") |";
    }
    out << "\n";
  }
  const Behind most = most_behind(rows);
  out << "\nThe fastest was behind another rule by a factor of " << number("%.3f", most.measured)
      << " at the most, as predicted by " << number("%.3f", most.predicted) << "; the same was measured within "
      << number("%.1f%%", 100 * noise) << " again.\n";
}

Json rules_json(const std::vector<RuleRow>& rows) {
  const Behind most = most_behind(rows);
  Json json = {{"rows", Json::array()}, {"most_behind", {{"measured", most.measured}, {"predicted", most.predicted}}}};
  for (const RuleRow& row : rows) {
    Json entry = {{"model", row.model}, {"shape", row.shape}, {"budget_bytes", row.budget_bytes}};
    if (row.was_measured()) {
      for (std::size_t rule = 0; rule < kRules.size(); ++rule) {
        entry[to_string(kRules[rule])] = {{"measured_us", row.by_rule[rule].measured_us},
                                          {"predicted_us", row.by_rule[rule].predicted_us}};
      }
      entry["again_us"] = row.again_us;
    } else {
      entry["error"] = row.error;
    }
    json["rows"].push_back(std::move(entry));
  }
  return json;
}

std::string first_failure(const std::vector<RuleRow>& rows) {
  const auto failed = std::find_if(rows.begin(), rows.end(), [](const RuleRow& row) { return !row.was_measured(); });
  return failed == rows.end() ? "" : failed->model + ", " + failed->shape + ": " + failed->error;
}

} // namespace offload::tools
