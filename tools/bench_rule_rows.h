#pragma once

#include <array>
#include <cstdint>
#include <iosfwd>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include <offload/rule.h>

namespace offload::tools {

/// One model, one shape of its inputs, one budget: what a call takes by each rule, in their order.
struct RuleRow {
  struct Time {
    double predicted_us = 0; ///< after two calls
    double measured_us = 0;
  };

  std::string model;
  std::string shape;
  std::uint64_t budget_bytes = 0;
  std::array<Time, kRules.size()> by_rule;
  double again_us = 0; ///< measured by the fastest once more, after all others
  std::string error;   ///< why something was not measured; empty if all was

  bool was_measured() const { return error.empty(); }

  /// How many times as long as by the fastest, of which both measurements count, and how far those two are apart.
  double measured_ratio(std::size_t rule) const {
    return 2 * by_rule[rule].measured_us / (by_rule[0].measured_us + again_us);
  }
  double predicted_ratio(std::size_t rule) const { return by_rule[rule].predicted_us / by_rule[0].predicted_us; }
  double noise() const;
};

/// A line for each row, then by how much the fastest was behind another rule at the most.
void write_rules(const std::vector<RuleRow>& rows, std::ostream& out);
nlohmann::ordered_json rules_json(const std::vector<RuleRow>& rows);

/// "model, shape, budget: why", for the first row that was not measured; empty when all were.
std::string first_failure(const std::vector<RuleRow>& rows);

} // namespace offload::tools
