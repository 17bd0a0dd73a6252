#include <tools/bench_errors.h>

#include <ATen/core/grad_mode.h>
#include <c10/core/DeviceGuard.h>
#include <c10/cuda/CUDACachingAllocator.h>

#include <algorithm>
#include <exception>

#include <offload/bytes.h>
#include <offload/core/words.h>
#include <offload/module.h>

namespace offload::tools {

namespace {

/// So many calls as take `us` by what `block` says of them.
int calls_in(double us, const Block& block) {
  constexpr double kMostCalls = 1000;
  const double call_us = block.window_us / static_cast<double>(block.call_us.size());
  return static_cast<int>(std::clamp(us / call_us, 1.0, kMostCalls));
}

/// Calls in up to five blocks, for as long as a row may take. Each block is as long as the one before it allows: other
/// programs may slow the machine down meanwhile.
Blocks time_blocks(const std::function<void()>& call, c10::Device device) {
  constexpr double kMostUs = 1.8e6; // what begins and ends a block comes on top of it
  constexpr int kBlocks = 5;
  double left_us = kMostUs;
  Block last;
  const auto time = [&](int calls) {
    time_block(call, calls, device, last);
    left_us -= last.window_us;
  };
  time(1); // only to know how many
  if (const int some = calls_in(kMostUs / 100, last); some > 1) {
    time(some);
  }
  Blocks measured;
  for (int i = 0; i < kBlocks && (i == 0 || left_us > last.window_us / 2); ++i) {
    time(calls_in(left_us / (kBlocks - i), last));
    measured.blocks.push_back(last);
  }
  return measured;
}

std::uint64_t used_bytes(const Stats& stats) { return stats.bytes_streamed - stats.bytes_ahead; }

std::uint64_t unused_bytes(const Budget& budget) {
  return left_of(budget.vram, budget.fixed + budget.resident + budget.ring + budget.reserve);
}

void measure_row(Module& module, const ExampleCall& call, ErrorRow& row) {
  const c10::Device device = module.device();
  const auto make_call = [&] { module.run_method(call.method, call.inputs, call.kwargs); };
  module.set_vram_budget(row.budget_bytes);
  make_call();
  make_call();
  const Placement placement = module.placement();
  row.after = placement.predicted;
  row.unused_bytes = unused_bytes(placement.budget);
  wait_until_idle(device);
  const Stats begin = module.stats();
  const Blocks blocks = time_blocks(make_call, device);
  const Stats end = module.stats();
  row.calls = blocks.calls();
  row.calls_s = blocks.window_us() / 1e6;
  row.measured_us = blocks.time_us();
  row.peak_bytes = end.peak_device_bytes;
  const std::uint64_t all_calls = end.calls - begin.calls;
  row.streamed_bytes = (used_bytes(end) - used_bytes(begin)) / all_calls;
  row.cached_bytes = (end.bytes_in_cache - begin.bytes_in_cache) / all_calls;
  row.bound = module.report().bound;
}

} // namespace

void measure_shape(const std::string& path, ShapePredictions& shape, const MeasureOptions& options, Rule rule) {
  const auto is_predicted = [](const ErrorRow& row) { return row.error.empty(); };
  if (std::none_of(shape.rows.begin(), shape.rows.end(), is_predicted)) {
    return;
  }
  if (options.device.is_cuda()) {
    c10::cuda::CUDACachingAllocator::emptyCache();
  }
  Options library = options_for(options.device);
  library.rule = rule;
  Module module = load(path, library);
  for (int i = 0; i < 2; ++i) { // the smallest budgets are enough once it is known what calls take
    module.run_method(shape.call.method, shape.call.inputs, shape.call.kwargs);
  }
  for (ErrorRow& row : shape.rows) {
    if (!is_predicted(row)) {
      continue;
    }
    if (options.progress) {
      options.progress(row.model + ": " + row.shape + " in " + format_bytes(row.budget_bytes) + ", " + to_string(rule));
    }
    try {
      measure_row(module, shape.call, row);
    } catch (const std::exception& error) {
      row.error = reason_of(error);
    }
  }
}

PredictionErrors measure_errors(const std::string& path, const PredictionOptions& predict,
                                const MeasureOptions& options) {
  const at::NoGradGuard no_grad;
  const c10::OptionalDeviceGuard guard(options.device);
  PredictionErrors errors;
  for (ShapePredictions& shape : predict_shapes(path, predict, options)) {
    try {
      measure_shape(path, shape, options, Rule::fastest);
    } catch (const std::exception& error) { // of the load or the first calls
      for (ErrorRow& row : shape.rows) {
        row.error = row.error.empty() ? reason_of(error) : row.error;
      }
    }
    errors.rows.insert(errors.rows.end(), shape.rows.begin(), shape.rows.end());
    if (shape.range) {
      errors.ranges.push_back(*shape.range);
    }
  }
  return errors;
}

} // namespace offload::tools
