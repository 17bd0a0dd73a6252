#include <offload/runtime/session.h>

#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAGuard.h>
#include <cuda_runtime_api.h>

#include <algorithm>

#include <offload/bytes.h>
#include <offload/core/host_limits.h>
#include <offload/device/cuda_calls.h>
#include <offload/runtime/arguments.h>
#include <offload/runtime/displaced.h>
#include <offload/runtime/outside_bytes.h>

namespace offload {

namespace {

constexpr std::uint64_t kMargin = 512_MiB; // left free by a default budget

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

Session::Session(const torch::jit::Module& module, const Options& options, const std::optional<MachineProfile>& machine,
                 Purpose purpose, Owner owner)
    : model_(examine(module, options, machine, host_promise_)),
      may_overflow_(!options.pinned_budget && !options.host_budget),
      device_promise_(model_.device.is_cuda() ? model_.device.index() : kHost),
      gate_(std::make_shared<LaneGate>(model_.lanes)),
      state_(model_, first_planned_method(model_.program, options)) {
  if (purpose == Purpose::plan) {
    prepare_device(model_.device); // what a run would take of the device, the plan names
  }
  choose_budget(options);
  state_.set_outside(outside_bytes(model_.device));
  const std::uint64_t vram = state_.given().vram;
  const DeviceBudget known = state_.budget();
  if (options.example_calls.empty() ||
      vram < known.minimum() - known.least_reserve()) { // else examples show what activations take
    state_.require_minimum(vram);
  }
  Displaced displaced;
  try {
    if (purpose == Purpose::run || !options.example_calls.empty()) {
      adopted_ = adopt_weights(model_, gate_, owner, options.progress, displaced);
      for (const ExampleCall& call : options.example_calls) {
        measure_example(call);
      }
      state_.require_minimum(vram);
    }
    if (purpose == Purpose::plan) {
      adopted_.reset();
    }
    if (purpose == Purpose::plan || !options.example_calls.empty()) {
      replan();
    } else {
      Plan plan = state_.make_plan(); // by what is known so far
      device_promise_.set(state_.promised_bytes(plan.residency));
      state_.set_plan(std::move(plan), Readiness::unknown);
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
void Session::choose_budget(const Options& options) {
  if (!options.vram_budget && model_.device.is_cuda()) {
    prepare_device(model_.device);                 // before others are kept from taking memory
    c10::cuda::CUDACachingAllocator::emptyCache(); // it gives back what is asked for in vain: it counts as free
  }
  device_promise_.set_by([&](std::uint64_t outstanding) {
    GivenBudget given;
    if (options.vram_budget) {
      given.vram = *options.vram_budget;
    } else {
      // What is used where it is takes no more.
      const std::uint64_t in_module =
          model_.host.in_module + (model_.device.is_cpu() && !model_.file ? model_.fixed : 0);
      given.free = in_module + less(free_bytes(model_.device), outstanding);
      given.vram = std::max(less(*given.free, kMargin), std::min(*given.free, state_.budget().minimum()));
    }
    state_.give(given);
    return state_.promised_bytes(all_resident(*model_.weights));
  });
}

/// What stands in the module goes before the memory that it stands in.
Session::~Session() { model_.program = {}; }

/// A call has its lane until it ends, and whoever wants to be alone waits for that.
void Session::require_no_call_around(const char* wanted) const {
  if (adopted_->executor->is_within_call()) {
    throw Error(std::string(wanted) + " of a module from within a call of it would wait for that call for ever: " +
                "do it when the call has returned, or with another module");
  }
}

const c10::FunctionSchema& Session::schema(const std::string& name) const {
  return find_method(model_.program, name).schema;
}

/// Waits for calls only where they may be writing it. An operator of such a call, which is the only one then, finds
/// what has been written so far.
c10::IValue Session::attr(const std::string& name) const {
  std::optional<ExclusiveLaneLock> alone;
  if (model_.program.writes_state) {
    if (!adopted_->executor->is_within_call()) {
      alone.emplace(*gate_);
    }
    engine().lanes().synchronize();
  }
  return adopted_->placed->attr(name);
}

Stats Session::stats() const {
  Stats stats;
  const std::uint64_t used = engine().bytes_used();
  stats.bytes_streamed = engine().bytes_streamed();
  stats.bytes_ahead = less(stats.bytes_streamed, used);
  stats.copies = engine().copies();
  stats.bytes_in_place = engine().lender().bytes_in_place();
  stats.bytes_in_cache = engine().lender().bytes_in_cache();
  stats.stall_us = engine().stall_us();
  stats.misses = engine().misses();
  stats.outside_bytes = outside_bytes(model_.device);
  state_.report(stats);
  return stats;
}

} // namespace offload
