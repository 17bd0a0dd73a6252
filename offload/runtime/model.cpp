#include <offload/runtime/model.h>

#include <c10/cuda/CUDAFunctions.h>

#include <algorithm>
#include <utility>

#include <offload/bytes.h>
#include <offload/core/host_limits.h>
#include <offload/device/cuda_calls.h>
#include <offload/error.h>
#include <offload/feed/stores.h>
#include <offload/graph/make_program.h>
#include <offload/load/file_bytes.h>
#include <offload/measure.h>
#include <offload/preview.h>
#include <offload/runtime/arguments.h>
#include <offload/tensor/plain_modes.h>
#include <offload/tensor/values.h>

namespace offload {

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

constexpr int kMostLanes = 8; // where no concurrency was given

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

void require_usable(const Options& options) {
  if (const int most = options.concurrency.value_or(1); most < 1 || most > 64) {
    throw InputError("concurrency is " + std::to_string(most) + ": give 1 to 64");
  }
  if (options.vram_budget && *options.vram_budget == 0) {
    throw InputError("vram_budget is 0: leave it out for what is free, or give bytes");
  }
  if (options.numerics != Numerics::exact) {
    throw InputError("numerics other than exact are not supported yet");
  }
}

/// A machine that is not here has what its profile says, and no more.
void require_room_elsewhere(const Options& options, const MachineProfile& machine) {
  const std::uint64_t wanted = options.vram_budget.value_or(0);
  if (machine.device_memory_bytes > 0 && wanted > machine.device_memory_bytes) {
    throw InputError("vram_budget " + format_bytes(wanted) + " (" + std::to_string(wanted) +
                     " bytes) is more than the " + format_bytes(machine.device_memory_bytes) + " (" +
                     std::to_string(machine.device_memory_bytes) + " bytes) of device memory of " +
                     (machine.name.empty() ? "the machine" : machine.name));
  }
}

/// What there is, what always stays on the device, and where the rest lies on the host.
void list_weights(Model& model, const Options& options, Promise& host_promise) {
  WeightTable table;
  std::vector<HostWeight> on_host;
  for (WeightId id = 0; id < model.program.weights.weights.size(); ++id) {
    const Weight& weight = model.program.weights.weights[id];
    const std::uint64_t place = align_up(weight.bytes(), kAlignment);
    const bool stays = !model.program.stays_because[id].empty();
    model.ranges_bytes += stays ? place : 0;
    table.push_back({weight.name, stays ? 0 : place, Arithmetic::fp32, {}});
    const FileBytes* in_file = file_bytes(weight.storage);
    if (in_file && model.file && model.file != in_file->file) {
      throw InputError("the weights of the module lie in two files, " + model.file->path() + " and " +
                       in_file->file->path() + ": load one archive");
    }
    model.file = in_file ? in_file->file : model.file;
    on_host.push_back({.bytes = table.back().bytes,
                       .begin = weight.begin + (in_file ? in_file->offset : 0),
                       .true_bytes = weight.bytes(),
                       .is_in_file = in_file != nullptr,
                       .can_stay_in_module = !model.is_for_gpu() && can_stay_in_module(weight, table.back().bytes),
                       .has_rows_looked_up = has_rows(model.program.uses[id])});
  }
  for (const c10::IValue& holder : model.program.holders) {
    visit_tensors("", holder, [&](const std::string&, const at::Tensor& tensor) {
      if (const auto id = model.program.weights.find(tensor)) {
        table[*id].arithmetic = arithmetic_of(tensor.scalar_type());
      }
    });
  }
  model.fixed = align_up(model.ranges_bytes, granularity(model));
  for (const OtherTensor& other : model.program.weights.others) {
    model.fixed += align_up(other.bytes(), granularity(model));
  }
  const auto by_use = order_of_use(model.static_steps(first_planned_method(model.program, options)), table.size());
  host_promise.set_by([&](std::uint64_t outstanding) {
    const std::uint64_t available = available_host_bytes();
    model.host = lay_out_host(on_host, by_use,
                              {!model.is_for_gpu(), options.host_budget, options.pinned_budget,
                               available - std::min(available, outstanding)});
    return model.elsewhere ? 0 : model.host.wanted();
  });
  for (WeightId id = 0; id < table.size(); ++id) {
    table[id].source = model.host.sources[id];
  }
  model.weights = std::make_shared<const WeightTable>(std::move(table));
}

} // namespace

std::vector<LeasedStep> Model::static_steps(const std::string& method) const {
  std::vector<LeasedStep> steps;
  const auto lowered = program.methods.find(method);
  if (lowered != program.methods.end()) {
    for (const LoweredStep* step : expected_order(lowered->second.steps)) {
      steps.push_back({.weights = step->weights, .rows_only = step->taken == Taken::rows});
    }
  }
  return steps;
}

std::string first_planned_method(const Program& program, const Options& options) {
  return !options.example_calls.empty()     ? options.example_calls.front().method
         : program.methods.count("forward") ? "forward"
         : program.methods.empty()          ? ""
                                            : program.methods.begin()->first;
}

Model examine(const torch::jit::Module& module, const Options& options, const std::optional<MachineProfile>& machine,
              Promise& host_promise) {
  Model model;
  model.device = device_of(options);
  if (model.device.is_cuda()) {
    require_cuda();
  }
  require_usable(options);
  if (machine) {
    require_room_elsewhere(options, *machine);
    model.elsewhere = machine->device_memory_bytes > 0;
  }
  {
    const PlainModes plain;
    model.program =
        make_program(module, model.device, options.rewrite_devices ? DeviceConstants::rewrite : DeviceConstants::keep,
                     options.gradients);
  }
  for (const OtherTensor& other : model.program.weights.others) {
    if (other.tensor.is_meta()) {
      throw InputError("tensor " + other.name + " is on the device meta and has no values: give it some, as " +
                       "load_state_dict(values, assign=True) does");
    }
  }
  model.lanes =
      model.program.writes_state ? 1 : options.concurrency.value_or(kMostLanes); // calls read what others wrote
  model.rule = options.rule;
  model.callers = std::min(model.lanes, options.concurrency.value_or(1));
  for (const ExampleCall& call : options.example_calls) { // throws InputError
    make_request(model.program, model.device, call.method, call.inputs, call.kwargs);
  }
  if (const auto forward = model.program.methods.find("forward"); forward != model.program.methods.end()) {
    forward->second.require_gradients();
  }
  model.machine = machine ? *machine : machine_profile(model.device);
  model.maps_file = model.device.is_cpu() && options.map_file;
  list_weights(model, options, host_promise);
  if (model.file && !machine) { // a profile that was given is that of another place
    const double cached = model.file->cached_share();
    const double cached_rate = model.maps_file ? kMappedBytesPerUs : model.machine.host_copy_bytes_per_us;
    double& rate = model.machine.file_bytes_per_us;
    rate = 1 / (cached / cached_rate + (1 - cached) / rate);
  }
  return model;
}

} // namespace offload
