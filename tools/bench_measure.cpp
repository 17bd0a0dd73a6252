#include <tools/bench_measure.h>

#include <ATen/core/grad_mode.h>
#include <ATen/cuda/CUDAContextLight.h>
#include <ATen/ops/add.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/randn.h>
#include <c10/core/DeviceGuard.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>
#include <torch/version.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <barrier>
#include <chrono>
#include <cstdlib>
#include <ctime>
#include <fstream>
#include <memory>
#include <optional>
#include <thread>

#include <offload/bytes.h>
#include <offload/device/memory.h>
#include <offload/graph/reference.h>
#include <offload/measure.h>
#include <offload/module.h>

#include "models/stack.h"

namespace offload::tools {

namespace {

/// Bytes of the device that are taken, as the driver counts them.
std::int64_t driver_bytes(c10::Device device) {
  std::size_t free = 0;
  std::size_t total = 0;
  return device.is_cuda() && cudaMemGetInfo(&free, &total) == cudaSuccess ? static_cast<std::int64_t>(total - free) : 0;
}

std::string cpu_name() {
  std::ifstream cpuinfo("/proc/cpuinfo");
  for (std::string line; std::getline(cpuinfo, line);) {
    if (line.starts_with("model name")) {
      return line.substr(line.find(':') + 2);
    }
  }
  return "unknown";
}

std::string driver_name() {
  std::ifstream version("/proc/driver/nvidia/version"); // "NVRM version: ... Kernel Module  580.95.05  ..."
  for (std::string word; version >> word;) {
    const bool number = word.find_first_not_of("0123456789.") == std::string::npos;
    if (number && std::count(word.begin(), word.end(), '.') > 0) {
      return word;
    }
  }
  int cuda = 0;
  static_cast<void>(cudaDriverGetVersion(&cuda));
  return "for CUDA " + std::to_string(cuda / 1000) + "." + std::to_string(cuda % 1000 / 10);
}

models::StackOptions stack_options(const Case& stack, std::int64_t layers) {
  models::StackOptions options;
  options.layers = layers;
  options.features = stack.features;
  options.dtype = stack.dtype == "bfloat16" ? at::kBFloat16 : at::kFloat;
  return options;
}

/// What a call takes on the device beside the weights: asked of a few layers of the stack, since it is the same for
/// many.
std::uint64_t activation_bytes(const Case& stack, const Options& options) {
  Options few = options;
  few.vram_budget.reset();
  few.pinned_budget.reset();
  return wrap(models::residual_stack(stack_options(stack, std::min<std::int64_t>(4, stack.layers))), few)
      .placement()
      .budget.reserve;
}

/// The record's way: what is not there is brought by a copy that the host waits for, used, and dropped.
at::Tensor load_and_unload(const std::vector<at::Tensor>& host, const std::vector<at::Tensor>& there,
                           std::size_t on_gpu, at::Tensor x) {
  for (std::size_t i = 0; i < host.size(); ++i) {
    x = at::add(x, at::linear(x, i < on_gpu ? there[i] : host[i].to(x.device())));
  }
  return x;
}

std::vector<at::Tensor> weights_of(const torch::jit::Module& module) {
  std::vector<at::Tensor> weights;
  for (const at::Tensor& weight : module.parameters()) {
    weights.push_back(weight);
  }
  return weights;
}

/// The share and what is added to it for the ring: never more than all weights, and nothing when all are resident.
RowResult row_of(const Case& stack, std::int64_t on_gpu, std::uint64_t ring) {
  RowResult row;
  row.layers_on_gpu = on_gpu;
  row.share_bytes = static_cast<std::uint64_t>(on_gpu) * stack.layer_bytes();
  row.spare_bytes = std::min(ring, stack.weight_bytes() - row.share_bytes);
  return row;
}

/// Sets the budget of the row and times its calls.
void measure_row(Module& model, const at::Tensor& input, const at::Tensor& expected, int calls,
                 const Yardstick& yardstick, std::int64_t driver_before, RowResult& row) {
  const c10::Device device = model.device();
  {
    const Budget budget = model.placement().budget;
    row.reserve_bytes = budget.reserve;
    row.fixed_bytes = budget.fixed;
  }
  row.budget_bytes =
      align_up(row.share_bytes + row.spare_bytes, kDeviceGranularity) + row.reserve_bytes + row.fixed_bytes;
  model.set_vram_budget(row.budget_bytes);
  const Placement placement = model.placement();
  row.ring_bytes = placement.budget.ring;
  row.predicted_us = placement.predicted.time_us;
  row.planned_bytes = placement.predicted.streamed_bytes;

  row.identical = model.forward({input}).toTensor().equal(expected);
  wait_until_idle(device);
  const Stats before = model.stats();
  row.blocks = measure_blocks([&] { model.forward({input}); }, calls, row.planned_bytes > 0, yardstick);
  const Stats after = model.stats();
  row.issued_bytes = after.bytes_streamed - before.bytes_streamed;
  row.used_bytes = row.issued_bytes + before.bytes_ahead - after.bytes_ahead;
  row.misses = after.misses - before.misses;
  row.stall_us = after.stall_us - before.stall_us;
  row.peak_device_bytes = after.peak_device_bytes;
  row.identical = row.identical && model.forward({input}).toTensor().equal(expected);
  row.driver_bytes = driver_bytes(device) - driver_before;
}

/// A model that is about to be loaded, what it is compared with, and what its calls will take.
struct Prepared {
  torch::jit::Module host;
  at::Tensor input;
  at::Tensor expected;
  Options options;
  std::uint64_t activations = 0;
  std::uint64_t ring = 0;
  Times plain_us;
  Times fused_us;
  Times cpu_us;
  std::vector<Times> auto_us;           ///< by share
  std::unique_ptr<Reference> reference; ///< on the device beside ours, where both find room

  Yardstick yardstick(const MeasureOptions& with, bool staged) const {
    Yardstick yardstick{with.device, {}, plain_us, with.link_bytes_per_us, staged};
    if (reference) {
      yardstick.plain = [this] { reference->run("forward", {input}); };
    }
    return yardstick;
  }

  /// Loads with the budget of the smallest share, so that no high-water mark is above it.
  Module load(const RowResult& row) {
    // Until activations have been measured the library reserves 64 MiB on a GPU.
    const std::uint64_t reserve = options.device->is_cuda() ? std::max(activations, 64_MiB) : activations;
    options.vram_budget = align_up(row.share_bytes + row.spare_bytes, kDeviceGranularity) + reserve;
    return wrap(std::move(host), options);
  }
};

/// Makes the model and, where `against` is true, measures what stands beside it. The plain run is always measured: the
/// limit and the check need it.
Prepared prepare(const Case& stack, const MeasureOptions& options, bool against) {
  const c10::Device device = options.device;
  const int plain_calls = device.is_cuda() ? 10 : 5;
  Prepared prepared;
  options.report(stack, "making the model");
  prepared.host = models::residual_stack(stack_options(stack, stack.layers));
  const std::vector<at::Tensor> host_weights = weights_of(prepared.host);
  const at::Tensor host_input =
      at::randn({stack.input_rows, stack.features}, at::TensorOptions()).to(host_weights.front().scalar_type());
  prepared.input = host_input.to(device);
  prepared.ring = options.ring_bytes.value_or(default_ring_bytes(stack));
  {
    options.report(stack, device.is_cuda() ? "plain GPU" : "plain host");
    torch::jit::Module there = device.is_cuda() ? prepared.host.deepcopy(device) : prepared.host;
    auto reference = std::make_unique<Reference>(there, device);
    prepared.expected = reference->run("forward", {prepared.input}).toTensor();
    prepared.plain_us = time_calls(2, plain_calls, device, [&] { reference->run("forward", {prepared.input}); });
    if (against && device.is_cuda() && options.against_gpu) {
      // Its first calls profile and compile.
      prepared.fused_us = time_calls(3, plain_calls, device, [&] { there.forward({prepared.input}); });
    }
    if (against && device.is_cuda() && options.against_auto) {
      options.report(stack, "synchronous load and unload");
      const std::vector<at::Tensor> weights = weights_of(there);
      for (const std::int64_t on_gpu : stack.layers_on_gpu) {
        const auto resident = static_cast<std::size_t>(on_gpu);
        prepared.auto_us.push_back(
            time_calls(1, 1, device, [&] { load_and_unload(host_weights, weights, resident, prepared.input); }));
      }
    }
    if (device.is_cuda() && free_bytes(device) > stack.weight_bytes() + 4_GiB) {
      prepared.reference = std::move(reference);
    }
  }
  if (against && device.is_cuda() && options.against_cpu) {
    options.report(stack, "plain CPU");
    Reference reference(prepared.host, c10::Device(c10::kCPU));
    prepared.cpu_us = time_calls(0, 1, c10::Device(c10::kCPU), [&] { reference.run("forward", {host_input}); });
  }
  options.report(stack, "measuring activations");
  prepared.options.device = device;
  prepared.options.example_calls = {{"forward", {prepared.input}, {}}};
  prepared.activations = activation_bytes(stack, prepared.options);
  wait_until_idle(device);
  if (device.is_cuda()) {
    c10::cuda::CUDACachingAllocator::emptyCache(); // what the plain run held is there for ours
  }
  return prepared;
}

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

} // namespace

CallersResult measure_callers(const Case& stack, const std::vector<int>& callers, const MeasureOptions& options) {
  const at::NoGradGuard no_grad;
  const c10::OptionalDeviceGuard guard(options.device);
  CallersResult result;
  result.stack = stack;
  Prepared prepared = prepare(stack, options, false);
  result.plain_us = median(prepared.plain_us);
  std::vector<int> counts = callers;
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
      prepared.host = host.deepcopy();
      prepared.options.concurrency = count;
      Module model = prepared.load(one);
      const Budget budget = model.placement().budget;
      const std::uint64_t for_calls = prepared.activations * static_cast<std::uint64_t>(count);
      model.set_vram_budget(std::max(
          budget.minimum, align_up(one.share_bytes + one.spare_bytes, kDeviceGranularity) + for_calls + budget.fixed));
      row.predicted = model.placement().predicted.round;
      measure_callers_row(model, prepared.input, prepared.expected, options.calls, row);
      alone_us = count == 1 ? row.round_us : alone_us;
      row.alone_us = alone_us;
      result.rows.push_back(row);
    }
  }
  return result;
}

Setup describe_setup(c10::Device device) {
  const c10::OptionalDeviceGuard guard(device);
  Setup setup;
  setup.cpu = cpu_name();
  setup.threads = std::thread::hardware_concurrency();
  setup.memory_bytes =
      static_cast<std::uint64_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<std::uint64_t>(sysconf(_SC_PAGESIZE));
  setup.torch = TORCH_VERSION;
  char date[32];
  const std::time_t now = std::time(nullptr);
  std::tm day{};
  std::strftime(date, sizeof date, "%Y-%m-%d", gmtime_r(&now, &day));
  setup.date = date;
#ifdef OFFLOAD_COMMIT
  setup.commit = OFFLOAD_COMMIT;
#endif
  if (const char* commit = std::getenv("OFFLOAD_BENCH_COMMIT")) {
    setup.commit = commit;
  }
  if (device.is_cuda()) {
    setup.gpu = at::cuda::getDeviceProperties(device.index())->name;
    setup.driver = driver_name();
    setup.link_bytes_per_us = link_bytes_per_us(device, 20);
  } else {
    setup.link_bytes_per_us = measure_machine(device).link_bytes_per_us;
  }
  return setup;
}

TableResult measure_case(const Case& stack, const MeasureOptions& options) {
  const at::NoGradGuard no_grad;
  const c10::OptionalDeviceGuard guard(options.device);
  TableResult table;
  table.stack = stack;
  table.show_plain = options.against_gpu;
  Prepared prepared = prepare(stack, options, true);
  for (const std::int64_t on_gpu : stack.layers_on_gpu) {
    table.rows.push_back(row_of(stack, on_gpu, prepared.ring));
  }
  const auto driver_before = driver_bytes(options.device);
  options.report(stack, "loading");
  Module model = prepared.load(table.rows.front());
  const Yardstick yardstick = prepared.yardstick(options, false);
  for (std::size_t i = 0; i < table.rows.size(); ++i) {
    RowResult& row = table.rows[i];
    options.report(stack, std::to_string(row.layers_on_gpu) + " layers on the device");
    measure_row(model, prepared.input, prepared.expected, options.calls, yardstick, driver_before, row);
    row.auto_us = i < prepared.auto_us.size() ? prepared.auto_us[i] : Times();
  }
  table.plain_us = std::move(prepared.plain_us);
  table.fused_us = std::move(prepared.fused_us);
  table.cpu_us = std::move(prepared.cpu_us);
  return table;
}

StagedResult measure_staged(const Case& stack, std::uint64_t pinned_bytes, const MeasureOptions& options) {
  const at::NoGradGuard no_grad;
  const c10::OptionalDeviceGuard guard(options.device);
  StagedResult staged;
  staged.stack = stack;
  staged.pinned_bytes = pinned_bytes;
  Prepared prepared = prepare(stack, options, false);
  prepared.options.pinned_budget = pinned_bytes;
  staged.row = row_of(stack, 0, prepared.ring);
  const auto driver_before = driver_bytes(options.device);
  options.report(stack, "loading for staging");
  Module model = prepared.load(staged.row);
  measure_row(model, prepared.input, prepared.expected, options.calls, prepared.yardstick(options, true), driver_before,
              staged.row);
  return staged;
}

} // namespace offload::tools
