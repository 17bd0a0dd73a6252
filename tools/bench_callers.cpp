#include <tools/bench_callers.h>

#include <ATen/core/grad_mode.h>
#include <c10/core/DeviceGuard.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <algorithm>
#include <atomic>
#include <barrier>
#include <chrono>
#include <nlohmann/json.hpp>
#include <optional>
#include <ostream>
#include <random>
#include <thread>
#include <vector>

#include <offload/bytes.h>
#include <offload/device/memory.h>
#include <tools/bench_prepare.h>
#include <tools/numbers.h>

namespace offload::tools {

namespace {

/// Makes `calls` calls on each of as many threads as the row has callers, each on a stream of its own.
void measure_callers_row(Module& model, const at::Tensor& input, const at::Tensor& expected, int calls,
                         CallersRow& row) {
  const c10::Device device = model.device();
  std::barrier together(row.callers + 1);
  std::atomic<bool> identical = true;
  std::vector<std::thread> threads;
  for (int caller = 0; caller < row.callers; ++caller) {
    threads.emplace_back([&] {
      const at::NoGradGuard no_grad;
      std::optional<c10::Stream> stream;
      if (device.is_cuda()) {
        stream = c10::cuda::getStreamFromPool(false, device.index());
      }
      const c10::cuda::OptionalCUDAStreamGuard guard(stream);
      const auto call = [&] { identical = model.forward({input}).toTensor().equal(expected) && identical; };
      for (int i = 0; i < 3; ++i) {
        call();
      }
      together.arrive_and_wait();
      together.arrive_and_wait();
      for (int i = 0; i < calls; ++i) {
        call();
      }
      together.arrive_and_wait();
    });
  }
  together.arrive_and_wait();
  wait_until_idle(device);
  const Stats before = model.stats();
  const auto begin = std::chrono::steady_clock::now();
  together.arrive_and_wait();
  together.arrive_and_wait();
  const std::chrono::duration<double, std::micro> took = std::chrono::steady_clock::now() - begin;
  for (std::thread& thread : threads) {
    thread.join();
  }
  row.round_us = took.count() / calls;
  row.bytes_a_call = static_cast<double>(model.stats().bytes_streamed - before.bytes_streamed) /
                     (static_cast<double>(calls) * row.callers);
  row.identical = identical;
}

/// Has calls arrive at random, as often as `load` says of what the row reached, each made at once by one of many
/// threads. If all of those are busy it waits for one, which counts. As many as come in a few seconds, but no fewer
/// than a 99th percentile can be told from.
OpenLoop measure_open_loop(Module& model, const at::Tensor& input, const at::Tensor& expected, double load,
                           const CallersRow& row) {
  constexpr double kSeconds = 5;
  const double rate = load * row.callers / row.round_us;
  const int calls = std::clamp(static_cast<int>(rate * kSeconds * 1e6), 100, 300);
  using Steady = std::chrono::steady_clock;
  const c10::Device device = model.device();
  std::mt19937 dice(1); // the same arrivals in each run
  std::exponential_distribution<double> pause(rate);
  std::vector<std::chrono::duration<double, std::micro>> arrivals;
  for (double at_us = 0; arrivals.size() < static_cast<std::size_t>(calls);) {
    arrivals.emplace_back(at_us += pause(dice));
  }
  OpenLoop open;
  open.load = load;
  open.waited_us.resize(calls);
  std::atomic<bool> identical = true;
  std::atomic<int> next = 0;
  std::vector<std::thread> threads;
  const int count = 4 * row.callers;
  std::barrier together(count);
  Steady::time_point begin;
  for (int i = 0; i < count; ++i) {
    threads.emplace_back([&, i] {
      const at::NoGradGuard no_grad;
      std::optional<c10::Stream> stream;
      if (device.is_cuda()) {
        stream = c10::cuda::getStreamFromPool(false, device.index());
      }
      const c10::cuda::OptionalCUDAStreamGuard guard(stream);
      model.forward({input}).toTensor().equal(expected); // of a thread the first call takes longer
      together.arrive_and_wait();
      if (i == 0) {
        begin = Steady::now();
      }
      together.arrive_and_wait();
      for (int call = next++; call < calls; call = next++) {
        std::this_thread::sleep_until(begin + std::chrono::duration_cast<Steady::duration>(arrivals[call]));
        identical = model.forward({input}).toTensor().equal(expected) && identical;
        const std::chrono::duration<double, std::micro> took = Steady::now() - begin - arrivals[call];
        open.waited_us[call] = took.count() - row.alone_us;
      }
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  open.identical = identical;
  return open;
}

} // namespace

CallersResult measure_callers(const Case& stack, const Selection& selection, const MeasureOptions& options) {
  const at::NoGradGuard no_grad;
  const c10::OptionalDeviceGuard guard(options.device);
  CallersResult result;
  result.stack = stack;
  Prepared prepared = prepare(stack, options, false);
  result.plain_us = median(prepared.plain_us);
  std::vector<int> counts = selection.callers;
  counts.insert(counts.begin(), 1); // what the others are compared with
  std::sort(counts.begin(), counts.end());
  counts.erase(std::unique(counts.begin(), counts.end()), counts.end());
  const torch::jit::Module host = prepared.host;
  for (const std::int64_t on_gpu : {std::int64_t{0}, stack.layers / 2}) {
    double alone_us = 0;
    for (const int count : counts) {
      options.report(stack, std::to_string(count) + " callers, " + std::to_string(on_gpu) + " layers on the device");
      CallersRow row;
      row.layers_on_gpu = on_gpu;
      row.callers = count;
      const RowResult one = row_of(stack, on_gpu, prepared.ring);
      const auto load_for = [&](int lanes) {
        prepared.host = host.deepcopy();
        prepared.options.concurrency = lanes;
        Module model = prepared.load(one);
        const Budget budget = model.placement().budget;
        const std::uint64_t for_calls = prepared.activations * static_cast<std::uint64_t>(lanes);
        model.set_vram_budget(std::max(budget.minimum, align_up(one.share_bytes + one.spare_bytes, kDeviceGranularity) +
                                                           for_calls + budget.fixed));
        return model;
      };
      {
        Module model = load_for(count);
        row.predicted = model.placement().predicted.round;
        measure_callers_row(model, prepared.input, prepared.expected, options.calls, row);
      }
      alone_us = count == 1 ? row.round_us : alone_us;
      row.alone_us = alone_us;
      if (count > 1 && !selection.loads.empty()) {
        Module model = load_for(std::min(2 * count, 64));
        for (const double load : selection.loads) {
          row.open.push_back(measure_open_loop(model, prepared.input, prepared.expected, load, row));
        }
      }
      result.rows.push_back(row);
    }
  }
  return result;
}

void write_callers(const CallersResult& result, std::ostream& out) {
  out << "\n## Callers at the same time: " << result.stack.title
      << "\n\nEach makes one call after the other, on a stream of its own. In a round each makes one; it takes at the "
         "least one\ncall alone, or the plain time of all. Lanes are calls at the same time that room is kept for.\n\n"
      << "| layers on the GPU | callers | lanes | round ms | of the least | predicted ms | calls/s | MiB a call | "
         "predicted MiB | check |\n"
      << "|---:|---:|---:|---:|---:|---:|---:|---:|---:|---|\n";
  for (const CallersRow& row : result.rows) {
    out << "| " << row.layers_on_gpu << " | " << row.callers << " | " << row.predicted.lanes << " | "
        << ms(row.round_us) << " | " << number("%.3f", row.round_us / row.limit_us(result.plain_us)) << " | "
        << ms(row.predicted.time_us) << " | " << number("%.1f", row.callers * 1e6 / row.round_us) << " | "
        << number("%.1f", row.bytes_a_call / (1 << 20)) << " | "
        << number("%.1f", static_cast<double>(row.predicted.streamed_bytes) / (1 << 20)) << " | "
        << (row.identical ? "bits right" : "**other bits**") << " |\n";
  }
  if (std::all_of(result.rows.begin(), result.rows.end(), [](const CallersRow& row) { return row.open.empty(); })) {
    return;
  }
  out << "\nCalls that arrive at random (Poisson), at a part of the calls a second above, with twice as many lanes: "
         "what "
         "comes in the\nmiddle of a pass waits in a lane for the next one. What calls wait is the time from arrival to "
         "output, less that of one call\nalone, which is a pass.\n\n"
      << "| layers on the GPU | callers | load | calls/s | median wait, passes | 99th percentile | calls | check |\n"
      << "|---:|---:|---:|---:|---:|---:|---:|---|\n";
  for (const CallersRow& row : result.rows) {
    for (const OpenLoop& open : row.open) {
      out << "| " << row.layers_on_gpu << " | " << row.callers << " | " << number("%.2f", open.load) << " | "
          << number("%.1f", open.load * row.callers * 1e6 / row.round_us) << " | "
          << number("%.2f", percentile(open.waited_us, 0.5) / row.alone_us) << " | "
          << number("%.2f", percentile(open.waited_us, 0.99) / row.alone_us) << " | " << open.waited_us.size() << " | "
          << (open.identical ? "bits right" : "**other bits**") << " |\n";
    }
  }
}

nlohmann::ordered_json callers_json(const CallersResult& result) {
  nlohmann::ordered_json json = case_json(result.stack);
  json["plain_us"] = result.plain_us;
  json["rows"] = nlohmann::ordered_json::array();
  for (const CallersRow& row : result.rows) {
    json["rows"].push_back({{"layers_on_gpu", row.layers_on_gpu},
                            {"callers", row.callers},
                            {"round_us", row.round_us},
                            {"ratio_to_limit", row.round_us / row.limit_us(result.plain_us)},
                            {"bytes_a_call", row.bytes_a_call},
                            {"lanes", row.predicted.lanes},
                            {"predicted_us", row.predicted.time_us},
                            {"predicted_bytes_a_call", row.predicted.streamed_bytes},
                            {"identical", row.identical}});
    nlohmann::ordered_json& open_loops = json["rows"].back()["open"] = nlohmann::ordered_json::array();
    for (const OpenLoop& open : row.open) {
      open_loops.push_back({{"load", open.load},
                            {"calls", open.waited_us.size()},
                            {"median_wait_us", percentile(open.waited_us, 0.5)},
                            {"p99_wait_us", percentile(open.waited_us, 0.99)},
                            {"alone_us", row.alone_us},
                            {"identical", open.identical}});
    }
  }
  return json;
}

} // namespace offload::tools
