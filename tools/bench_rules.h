#pragma once

#include <string>
#include <vector>

#include <tools/bench_previews.h>
#include <tools/bench_rule_rows.h>

namespace offload::tools {

/// Measures the model in `path` by each rule, for each shape of its inputs and each of the budgets, and by the fastest
/// once more at the end. A row that fails holds the reason. Throws as predict_shapes() does.
std::vector<RuleRow> measure_rules(const std::string& path, const PredictionOptions& predict,
                                   const MeasureOptions& options);

} // namespace offload::tools
