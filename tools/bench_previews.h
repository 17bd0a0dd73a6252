#pragma once

#include <cstddef>
#include <exception>
#include <optional>
#include <string>
#include <vector>

#include <offload/options.h>
#include <offload/profile.h>
#include <tools/bench_measure.h>
#include <tools/monotone.h>
#include <tools/prediction_errors.h>

namespace offload::tools {

/// What is predicted before any call: with what, and for how many budgets.
struct PredictionOptions {
  MachineProfile machine;
  std::size_t budgets = 11;
  bool whole_range = false; ///< for all other budgets, too
};

/// One shape of a model's inputs, with what is predicted of it.
struct ShapePredictions {
  ExampleCall call;
  std::vector<ErrorRow> rows;      ///< one for each budget, or one with the reason why there is none
  std::optional<WholeRange> range; ///< where it is wanted
};

/// Previews of the model in `path`, for each shape of the calls in NAME.inputs.pt beside it: nothing is loaded. Throws
/// InputError where there are no calls, and what read_archive() throws.
std::vector<ShapePredictions> predict_shapes(const std::string& path, const PredictionOptions& predict,
                                             const MeasureOptions& options);

/// Both for previews and for modules: one caller, on this device.
Options options_for(c10::Device device);

/// What went wrong, in one line.
std::string reason_of(const std::exception& error);

/// The name of the model in `path`.
std::string name_of_model(const std::string& path);

} // namespace offload::tools
