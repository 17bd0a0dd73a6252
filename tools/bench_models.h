#pragma once

#include <torch/csrc/jit/api/module.h>

#include <iosfwd>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include <offload/options.h>
#include <tools/bench_measure.h>

namespace offload::tools {

/// One call of each shape in NAME.inputs.pt beside `path`, the archive of `module`. Throws InputError when there is
/// none.
std::vector<ExampleCall> example_calls_of(const std::string& path, const torch::jit::Module& module,
                                          c10::Device device);

/// Calls the model in `path` with the first of the calls in NAME.inputs.pt beside it. Throws InputError when there is
/// none, and what the library throws.
ModelResult measure_model(const std::string& path, const MeasureOptions& options);

nlohmann::ordered_json blocks_json(const Blocks& blocks);

void write_models(const std::vector<ModelResult>& models, std::ostream& out);
nlohmann::ordered_json models_json(const std::vector<ModelResult>& models);

} // namespace offload::tools
