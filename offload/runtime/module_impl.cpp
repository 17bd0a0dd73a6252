#include <offload/runtime/module_impl.h>

#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAGuard.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <vector>

#include <offload/bytes.h>
#include <offload/core/host_limits.h>
#include <offload/device/cuda_calls.h>
#include <offload/preview.h>
#include <offload/runtime/displaced.h>
#include <offload/runtime/outside_bytes.h>

namespace offload {

namespace {

constexpr std::uint64_t kMargin = 512_MiB; // left free by a default budget

} // namespace

namespace {

std::uint64_t free_bytes(c10::Device device) {
  if (device.is_cpu()) {
    return available_host_bytes();
  }
  std::size_t free = 0;
  std::size_t total = 0;
  const c10::cuda::CUDAGuard guard(device);
  check_cuda(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
  return free;
}

std::uint64_t less(std::uint64_t bytes, std::uint64_t taken) { return bytes - std::min(bytes, taken); }

} // namespace

Module::Impl::Impl(const torch::jit::Module& module, const Options& options,
                   const std::optional<MachineProfile>& machine, Purpose purpose, Owner owner)
    : model_(examine(module, options, machine, host_promise_)),
      may_overflow_(!options.pinned_budget && !options.host_budget),
      device_promise_(model_.device.is_cuda() ? model_.device.index() : kHost),
      gate_(std::make_shared<LaneGate>(model_.lanes)),
      observed_(model_, first_planned_method(model_.program, options)) {
  if (purpose == Purpose::plan) {
    prepare_device(model_.device); // what a run would take of the device, the plan names
  }
  choose_budget(options);
  planned_.outside = outside_bytes(model_.device);
  const DeviceBudget known = device_budget();
  if (options.example_calls.empty() ||
      given_.vram < known.minimum() - known.least_reserve()) { // else examples show what activations take
    require_minimum(given_.vram);
  }
  Displaced displaced;
  try {
    if (purpose == Purpose::run || !options.example_calls.empty()) {
      adopted_ = adopt_weights(model_, gate_, owner, options.progress, displaced);
      for (const ExampleCall& call : options.example_calls) {
        measure_example(call);
      }
      require_minimum(given_.vram);
    }
    if (purpose == Purpose::plan) {
      adopted_.reset();
    }
    if (purpose == Purpose::plan || !options.example_calls.empty()) {
      replan();
    } else {
      planned_.plan = observed_.plan(given_.vram); // what is known so far
      device_promise_.set(promised_bytes(planned_.plan.residency));
    }
  } catch (...) {
    adopted_.reset();
    displaced.put_back();
    throw;
  }
  if (purpose == Purpose::plan) {
    displaced.put_back();
  }
}

/// By default what is free and promised to nobody, less some for others; but what is free as far as the smallest
/// budget.
void Module::Impl::choose_budget(const Options& options) {
  if (!options.vram_budget && model_.device.is_cuda()) {
    prepare_device(model_.device);                 // before others are kept from taking memory
    c10::cuda::CUDACachingAllocator::emptyCache(); // it gives back what is asked for in vain: it counts as free
  }
  device_promise_.set_by([&](std::uint64_t outstanding) {
    if (options.vram_budget) {
      given_.vram = *options.vram_budget;
    } else {
      // What is used where it is takes no more.
      const std::uint64_t in_module =
          model_.host.in_module + (model_.device.is_cpu() && !model_.file ? model_.fixed : 0);
      given_.free = in_module + less(free_bytes(model_.device), outstanding);
      given_.vram = std::max(less(*given_.free, kMargin), std::min(*given_.free, device_budget().minimum()));
    }
    return promised_bytes(all_resident(*model_.weights));
  });
}

/// What stands in the module goes before the memory that it stands in.
Module::Impl::~Impl() { model_.program = {}; }

} // namespace offload
