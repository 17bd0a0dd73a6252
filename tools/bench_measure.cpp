#include <tools/bench_measure.h>

#include <ATen/core/grad_mode.h>
#include <ATen/cuda/CUDAContextLight.h>
#include <c10/core/DeviceGuard.h>
#include <cuda_runtime_api.h>
#include <torch/version.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <ctime>
#include <fstream>
#include <optional>
#include <thread>

#include <offload/bytes.h>
#include <offload/device/memory.h>
#include <offload/measure.h>
#include <offload/module.h>
#include <tools/bench_prepare.h>

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

} // namespace

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
