#include <tools/bench_rules.h>

#include <ATen/core/grad_mode.h>
#include <c10/core/DeviceGuard.h>

#include <exception>
#include <functional>

#include <tools/bench_errors.h>

namespace offload::tools {

namespace {

/// Measures by `rule`, and has `keep` put each row where it belongs.
void measure_by(Rule rule, const std::string& path, ShapePredictions shape, const MeasureOptions& options,
                std::vector<RuleRow>& rows, const std::function<void(const ErrorRow&, RuleRow&)>& keep) {
  std::string failure;
  try {
    measure_shape(path, shape, options, rule);
  } catch (const std::exception& error) { // of the load or the first calls
    failure = reason_of(error);
  }
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const std::string& why = failure.empty() ? shape.rows[i].error : failure;
    if (why.empty()) {
      keep(shape.rows[i], rows[i]);
    } else if (rows[i].error.empty()) {
      rows[i].error = std::string(to_string(rule)) + ": " + why;
    }
  }
}

std::vector<RuleRow> measure_shape_by_all(const std::string& path, const ShapePredictions& shape,
                                          const MeasureOptions& options) {
  std::vector<RuleRow> rows;
  for (const ErrorRow& row : shape.rows) {
    rows.push_back(
        {.model = row.model, .shape = row.shape, .budget_bytes = row.budget_bytes, .by_rule = {}, .error = row.error});
  }
  for (std::size_t rule = 0; rule < kRules.size(); ++rule) {
    measure_by(kRules[rule], path, shape, options, rows, [&](const ErrorRow& measured, RuleRow& row) {
      row.by_rule[rule] = {measured.after->time_us, measured.measured_us};
    });
  }
  measure_by(Rule::fastest, path, shape, options, rows,
             [](const ErrorRow& measured, RuleRow& row) { row.again_us = measured.measured_us; });
  return rows;
}

} // namespace

std::vector<RuleRow> measure_rules(const std::string& path, const PredictionOptions& predict,
                                   const MeasureOptions& options) {
  const at::NoGradGuard no_grad;
  const c10::OptionalDeviceGuard guard(options.device);
  std::vector<RuleRow> rows;
  for (const ShapePredictions& shape : predict_shapes(path, predict, options)) {
    const std::vector<RuleRow> of_shape = measure_shape_by_all(path, shape, options);
    rows.insert(rows.end(), of_shape.begin(), of_shape.end());
  }
  return rows;
}

} // namespace offload::tools
