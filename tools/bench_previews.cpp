#include <tools/bench_previews.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>

#include <offload/bytes.h>
#include <offload/core/words.h>
#include <offload/error.h>
#include <offload/load/archive.h>
#include <offload/preview.h>
#include <tools/bench_models.h>
#include <tools/cli.h>
#include <tools/inputs.h>

namespace offload::tools {

namespace {

std::string describe(const ExampleCall& call) {
  std::string text;
  for (const c10::IValue& input : call.inputs) {
    text += (text.empty() ? "" : ", ") + describe_size(input);
  }
  return text;
}

double seconds_since(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

/// One shape of one model: what its previews are made of.
struct Subject {
  const torch::jit::Module& archive;
  Options options; ///< with the call as its only example
  const MachineProfile& machine;
};

/// Some forty budgets, from the smallest that works to the one in which all is resident, or to what the device has.
Sweep sweep_coarsely(const Subject& subject) {
  Options options = subject.options;
  std::uint64_t most = preview(subject.archive, options, subject.machine).budget.vram;
  if (options.device->is_cuda()) {
    most = std::min(most, left_of(free_bytes(*options.device), 512_MiB));
  }
  options.vram_budget = most;
  return sweep(subject.archive, options, {}, subject.machine);
}

void predict_row(const Subject& subject, ErrorRow& row) {
  Options options = subject.options;
  options.vram_budget = row.budget_bytes;
  try {
    const Placement placement = preview(subject.archive, options, subject.machine);
    row.before = placement.predicted;
    row.before_by = placement.budget.reserve_by;
  } catch (const std::exception& error) {
    row.error = "before: " + reason_of(error);
  }
}

/// In steps of 64 KiB, or in as many as take 20 s if a plan takes `plan_s`.
void predict_range(const Subject& subject, double plan_s, WholeRange& range) {
  constexpr double kStep = 64_KiB;
  constexpr double kMostSeconds = 20;
  const auto length = static_cast<double>(range.most - range.least);
  const double steps = std::clamp(std::min(std::ceil(length / kStep), kMostSeconds / plan_s), 1.0, 1e7);
  const auto begin = std::chrono::steady_clock::now();
  const std::vector<std::uint64_t> budgets =
      spread_budgets(range.least, range.most, static_cast<std::size_t>(steps) + 1);
  range.rises = find_rises(sweep(subject.archive, subject.options, budgets, subject.machine).points);
  range.seconds = seconds_since(begin);
  range.step_bytes = length / static_cast<double>(std::max<std::size_t>(budgets.size(), 2) - 1);
}

void predict_shape(const Subject& subject, const PredictionOptions& predict, ShapePredictions& shape) {
  ErrorRow row = shape.rows.front(); // with the names only
  const auto begin = std::chrono::steady_clock::now();
  const Sweep coarse = sweep_coarsely(subject);
  const double plan_s = seconds_since(begin) / static_cast<double>(coarse.points.size());
  const std::uint64_t least = coarse.points.front().vram;
  const std::uint64_t most = coarse.points.back().vram;
  shape.rows.clear();
  for (const std::uint64_t budget : spread_budgets(least, most, predict.budgets)) {
    row.budget_bytes = budget;
    shape.rows.push_back(row);
    predict_row(subject, shape.rows.back());
  }
  if (shape.range) {
    shape.range->least = least;
    shape.range->most = most;
    predict_range(subject, plan_s, *shape.range);
  }
}

} // namespace

Options options_for(c10::Device device) {
  Options options;
  options.device = device;
  options.concurrency = 1;
  return options;
}

std::string reason_of(const std::exception& error) {
  return dynamic_cast<const Error*>(&error) != nullptr ? error.what() : last_line(error.what());
}

std::string name_of_model(const std::string& path) { return std::filesystem::path(path).stem().string(); }

std::vector<ShapePredictions> predict_shapes(const std::string& path, const PredictionOptions& predict,
                                             const MeasureOptions& options) {
  const torch::jit::Module archive = read_archive(path, Weights::on_file);
  std::vector<ShapePredictions> shapes;
  for (const ExampleCall& call : example_calls_of(path, archive, options.device)) {
    Subject subject{archive, options_for(options.device), predict.machine};
    subject.options.example_calls = {call};
    ShapePredictions shape{call, {}, {}};
    ErrorRow row;
    row.model = name_of_model(path);
    row.shape = describe(call);
    if (options.progress) {
      options.progress(row.model + ": predicting " + row.shape);
    }
    if (predict.whole_range) {
      shape.range = WholeRange{row.model, row.shape, 0, 0, 0, 0, {}, {}};
    }
    shape.rows = {row};
    try {
      predict_shape(subject, predict, shape);
    } catch (const std::exception& error) {
      shape.rows.front().error = "before: " + reason_of(error);
      if (shape.range) {
        shape.range->error = reason_of(error);
      }
    }
    shapes.push_back(std::move(shape));
  }
  return shapes;
}

} // namespace offload::tools
