#include <offload/runtime/module_impl.h>

#include <ATen/Context.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAGuard.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <numeric>

#include <offload/core/host_limits.h>
#include <offload/device/cuda_calls.h>
#include <offload/feed/stores.h>
#include <offload/graph/attributes.h>
#include <offload/load/file_bytes.h>
#include <offload/measure.h>
#include <offload/preview.h>
#include <offload/runtime/arguments.h>
#include <offload/tensor/plain_modes.h>
#include <offload/tensor/values.h>

namespace offload {

namespace {

constexpr std::uint64_t kMargin = 512_MiB; // left free by a default budget

} // namespace

c10::Device device_of(const Options& options) {
  if (!options.device) {
    return c10::cuda::device_count() > 0 ? c10::Device(c10::kCUDA, 0) : c10::Device(c10::kCPU);
  }
  if (options.device->is_cuda()) {
    const c10::DeviceIndex index = options.device->has_index() ? options.device->index() : 0;
    if (index >= c10::cuda::device_count()) {
      throw InputError("device " + options.device->str() + " is not there: torch finds " +
                       std::to_string(c10::cuda::device_count()) + " CUDA devices");
    }
    return {c10::kCUDA, index};
  }
  if (!options.device->is_cpu()) {
    throw InputError("device " + options.device->str() + " is not supported: give cuda or cpu");
  }
  return {c10::kCPU};
}

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

Module::Impl::Impl(torch::jit::Module module, const Options& options, const std::optional<MachineProfile>& machine,
                   Purpose purpose, Owner owner)
    : device_(device_of(options)),
      maps_file_(options.map_file),
      may_overflow_(!options.pinned_budget && !options.host_budget),
      device_promise_(device_.is_cuda() ? device_.index() : kHost) {
  if (device_.is_cuda()) {
    require_cuda();
  }
  if (options.concurrency < 1 || options.concurrency > 64) {
    throw InputError("concurrency is " + std::to_string(options.concurrency) + ": give 1 to 64");
  }
  if (options.vram_budget && *options.vram_budget == 0) {
    throw InputError("vram_budget is 0: leave it out for what is free, or give bytes");
  }
  if (options.numerics != Numerics::exact) {
    throw InputError("numerics other than exact are not supported yet");
  }
  try {
    module._ivalue();
  } catch (const c10::Error&) { // an assertion of its own
    throw InputError("the module is empty, as torch::jit::Module() makes it: give one that was loaded or scripted");
  }
  if (module.hasattr("training") && module.is_training()) { // a frozen module has no such attribute
    TORCH_WARN(
        "the module is in training mode: dropout and running statistics work as in training; call eval() before "
        "saving it");
  }
  visit_tensors("", module._ivalue(), [](const std::string& name, const at::Tensor& tensor) {
    if (placeholder_record(tensor)) {
      throw InputError("weight " + name +
                       " belongs to another offload::Module: wrap() consumes a module, load it anew");
    }
  });
  {
    const PlainModes plain;
    program_ = make_program(module, device_, options.rewrite_devices ? DeviceConstants::rewrite : DeviceConstants::keep,
                            options.gradients);
  }
  for (const OtherTensor& other : program_.weights.others) {
    if (other.tensor.is_meta()) {
      throw InputError("tensor " + other.name + " is on the device meta and has no values: give it some, as " +
                       "load_state_dict(values, assign=True) does");
    }
  }
  lanes_ = program_.writes_state ? 1 : options.concurrency; // what calls write, the next one reads
  gate_ = std::make_shared<LaneGate>(lanes_);
  for (const ExampleCall& call : options.example_calls) {
    make_stack(program_, find_method(program_, call.method), device_, call.inputs, call.kwargs); // throws InputError
  }
  machine_ = machine ? *machine : machine_profile(device_);

  planned_method_ = !options.example_calls.empty()      ? options.example_calls.front().method
                    : program_.methods.count("forward") ? "forward"
                    : program_.methods.empty()          ? ""
                                                        : program_.methods.begin()->first;
  if (const auto forward = program_.methods.find("forward"); forward != program_.methods.end()) {
    forward->second.require_gradients();
  }
  list_weights(options);
  if (file_ && !machine) { // a profile that was given is that of another place
    const double cached = file_->cached_share();
    const double cached_bytes_per_us =
        device_.is_cpu() && maps_file_ ? kMappedBytesPerUs : machine_.host_copy_bytes_per_us;
    machine_.file_bytes_per_us = 1 / (cached / cached_bytes_per_us + (1 - cached) / machine_.file_bytes_per_us);
  }
  if (purpose == Purpose::plan) {
    prepare_device(device_); // what a run would take of the device, the plan names
  }
  choose_budget(options);
  outside_ = outside_bytes(device_);
  const DeviceBudget known = device_budget();
  if (options.example_calls.empty() ||
      vram_ < known.minimum() - known.least_reserve()) { // else examples show what activations take
    require_minimum(vram_);
  }
  Displaced displaced;
  try {
    if (purpose == Purpose::run || !options.example_calls.empty()) {
      adopt_weights(owner, options.progress, displaced);
      for (const ExampleCall& call : options.example_calls) {
        measure_example(call);
      }
      require_minimum(vram_);
    }
    if (purpose == Purpose::plan) {
      drop_engine();
    }
    if (purpose == Purpose::plan || !options.example_calls.empty()) {
      replan();
    } else {
      plan_ = best_plan(); // what is known so far
      device_promise_.set(promised_bytes(plan_.residency));
    }
  } catch (...) {
    drop_engine();
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
  if (!options.vram_budget && device_.is_cuda()) {
    prepare_device(device_);                       // before others are kept from taking memory
    c10::cuda::CUDACachingAllocator::emptyCache(); // it gives back what is asked for in vain: it counts as free
  }
  device_promise_.set_by([&](std::uint64_t outstanding) {
    if (options.vram_budget) {
      vram_ = *options.vram_budget;
    } else {
      // What is used where it is takes no more.
      const std::uint64_t in_module = host_.in_module + (device_.is_cpu() && !file_ ? fixed_ : 0);
      free_ = in_module + less(free_bytes(device_), outstanding);
      vram_ = std::max(less(*free_, kMargin), std::min(*free_, device_budget().minimum()));
    }
    return promised_bytes({std::vector<bool>(count(), true), 0});
  });
}

void Module::Impl::drop_engine() {
  executor_.reset();
  placed_.reset();
  engine_.reset();
}

/// What stands in the module goes before the memory that it stands in.
Module::Impl::~Impl() {
  executor_.reset();
  placed_.reset();
  program_ = {};
}

namespace {

bool has_rows(const std::vector<Use>& uses) {
  return std::any_of(uses.begin(), uses.end(), [](const Use& use) { return use.taken == to_string(Taken::rows); });
}

Arithmetic arithmetic_of(at::ScalarType dtype) {
  return dtype == at::kDouble                           ? Arithmetic::fp64
         : dtype == at::kBFloat16 || dtype == at::kHalf ? Arithmetic::half
                                                        : Arithmetic::fp32;
}

/// On the host a weight is used where it is, where that is as good as a place of ours: as aligned as PyTorch makes it,
/// and readable up to the size of its place in the ring.
bool can_stay_in_module(const Weight& weight, std::uint64_t place_bytes) {
  constexpr std::uintptr_t kAligned = 64;
  return place_bytes > 0 && !file_bytes(weight.storage) && weight.storage.device().is_cpu() &&
         reinterpret_cast<std::uintptr_t>(weight.storage.data()) % kAligned == 0 &&
         weight.begin + place_bytes <= weight.storage.nbytes();
}

} // namespace

/// What there is, what always stays on the device, and where the rest lies on the host.
void Module::Impl::list_weights(const Options& options) {
  WeightTable table;
  std::vector<HostWeight> on_host;
  for (WeightId id = 0; id < program_.weights.weights.size(); ++id) {
    const Weight& weight = program_.weights.weights[id];
    const std::uint64_t place = align_up(weight.bytes(), kAlignment);
    const bool stays = !program_.stays_because[id].empty();
    ranges_bytes_ += stays ? place : 0;
    table.push_back({weight.name, stays ? 0 : place, Arithmetic::fp32, {}});
    const FileBytes* in_file = file_bytes(weight.storage);
    if (in_file && file_ && file_ != in_file->file) {
      throw InputError("the weights of the module lie in two files, " + file_->path() + " and " +
                       in_file->file->path() + ": load one archive");
    }
    file_ = in_file ? in_file->file : file_;
    HostWeight& host = on_host.emplace_back();
    host.bytes = table.back().bytes;
    host.begin = weight.begin + (in_file ? in_file->offset : 0);
    host.true_bytes = weight.bytes();
    host.is_in_file = in_file != nullptr;
    host.can_stay_in_module = device_.is_cpu() && can_stay_in_module(weight, host.bytes);
    host.has_rows_looked_up = has_rows(program_.uses[id]);
  }
  for (const torch::jit::Module& holder : program_.holders) {
    visit_tensors("", holder._ivalue(), [&](const std::string&, const at::Tensor& tensor) {
      if (const auto id = program_.weights.find(tensor)) {
        table[*id].arithmetic = arithmetic_of(tensor.scalar_type());
      }
    });
  }
  fixed_ = align_up(ranges_bytes_, granularity(device_));
  for (const OtherTensor& other : program_.weights.others) {
    fixed_ += align_up(other.bytes(), granularity(device_));
  }
  const auto by_use = order_of_use(static_steps(planned_method_), table.size());
  host_promise_.set_by([&](std::uint64_t outstanding) {
    host_ = lay_out_host(
        on_host, by_use,
        {device_.is_cpu(), options.host_budget, options.pinned_budget, less(available_host_bytes(), outstanding)});
    return host_.wanted();
  });
  for (WeightId id = 0; id < table.size(); ++id) {
    table[id].source = host_.sources[id];
  }
  weights_ = std::make_shared<const WeightTable>(std::move(table));
}

} // namespace offload
