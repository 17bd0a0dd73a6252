#pragma once

#include <string>
#include <vector>

#include <tools/bench_previews.h>

namespace offload::tools {

/// Of one model, for each shape of its inputs.
struct PredictionErrors {
  std::vector<ErrorRow> rows;
  std::vector<WholeRange> ranges; ///< where they are wanted
};

/// Measures the rows that could be predicted, where weights stay by `rule`. Timed calls take 2 s a row, or as long as
/// two of them. A row that fails holds the reason. Throws what load() and a call throw.
void measure_shape(const std::string& path, ShapePredictions& shape, const MeasureOptions& options, Rule rule);

/// Predicts and measures the model in `path`, for each shape of its inputs and each of the budgets. What is predicted
/// before the first call is predicted before the model is loaded. Throws as predict_shapes() does.
PredictionErrors measure_errors(const std::string& path, const PredictionOptions& predict,
                                const MeasureOptions& options);

} // namespace offload::tools
