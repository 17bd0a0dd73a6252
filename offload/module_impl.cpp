#include <offload/module_impl.h>

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <c10/core/InferenceMode.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAGuard.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <numeric>

#include <offload/graph/constants.h>
#include <offload/measure.h>
#include <offload/preview.h>
#include <offload/stream/cuda_link.h>

namespace offload {

namespace {

constexpr std::uint64_t kMargin = 512_MiB;       // left free by a default budget
constexpr std::uint64_t kStagingBytes = 256_MiB; // more staging than this gains nothing
constexpr std::uint64_t kPlaceBytes = 512;       // every place is aligned to this, as the allocator of torch aligns

} // namespace

c10::Device device_of(const Options& options) {
  const bool cuda = c10::cuda::device_count() > 0;
  if (!options.device) {
    return cuda ? c10::Device(c10::kCUDA, 0) : c10::Device(c10::kCPU);
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

std::uint64_t default_vram(c10::Device device) {
  std::uint64_t free = 0;
  if (device.is_cuda()) {
    std::size_t total = 0;
    std::size_t now = 0;
    const c10::cuda::CUDAGuard guard(device);
    check_cuda(cudaMemGetInfo(&now, &total), "cudaMemGetInfo");
    free = now;
  } else {
    free = available_host_bytes();
  }
  return free > kMargin ? free - kMargin : 0;
}

} // namespace

Module::Impl::Impl(torch::jit::Module module, const Options& options, const std::optional<MachineProfile>& machine,
                   Purpose purpose, Owner owner)
    : module_(std::move(module)),
      device_(device_of(options)),
      concurrency_(options.concurrency),
      may_overflow_(!options.pinned_budget && !options.host_budget),
      gate_(std::max(1, options.concurrency)) {
  if (concurrency_ < 1 || concurrency_ > 64) {
    throw InputError("concurrency is " + std::to_string(concurrency_) + ": give 1 to 64");
  }
  if (options.vram_budget && *options.vram_budget == 0) {
    throw InputError("vram_budget is 0: leave it out for what is free, or give bytes");
  }
  if (options.numerics != Numerics::exact) {
    throw InputError("numerics other than exact are not supported yet");
  }
  if (module_.hasattr("training") && module_.is_training()) { // a frozen module has no such attribute
    TORCH_WARN(
        "the module is in training mode: dropout and running statistics work as in training; call eval() before "
        "saving it");
  }
  const c10::InferenceMode no_inference_mode(false);
  program_ = make_program(module_, device_, options.rewrite_devices ? DeviceConstants::rewrite : DeviceConstants::keep);
  for (const ExampleCall& call : options.example_calls) {
    make_stack(method(call.method), call.inputs, call.kwargs); // throws InputError
  }
  machine_ = machine ? *machine : machine_profile(device_);
  vram_ = options.vram_budget ? *options.vram_budget : default_vram(device_);

  const auto& weights = program_.weights.weights;
  for (WeightId id = 0; id < weights.size(); ++id) {
    const bool stays = !program_.stays_because[id].empty();
    bytes_.push_back(stays ? 0 : align_up(weights[id].bytes(), kPlaceBytes));
    fixed_ += stays ? align_up(weights[id].bytes(), kPlaceBytes) : 0;
  }
  fixed_ = align_up(fixed_, granularity(device_));
  dtypes_.assign(weights.size(), at::kFloat);
  replace_tensors(program_.holders, [&](const at::Tensor& tensor) {
    dtypes_[program_.weights.id_of(tensor)] = tensor.scalar_type();
    return tensor;
  });
  planned_method_ = !options.example_calls.empty()      ? options.example_calls.front().method
                    : program_.methods.count("forward") ? "forward"
                    : program_.methods.empty()          ? ""
                                                        : program_.methods.begin()->first;
  reserve_ = default_reserve();
  offsets_.assign(weights.size(), 0);
  offsets_ = lay_out(pass_of(static_steps(planned_method_)));
  divide_host_memory(options);
  require_minimum();
  if (purpose == Purpose::run || !options.example_calls.empty()) {
    take_over_weights(owner);
    for (const ExampleCall& call : options.example_calls) {
      measure(call.method, make_stack(method(call.method), call.inputs, call.kwargs));
    }
    require_minimum();
  }
  if (purpose == Purpose::plan) {
    engine_.reset();
  }
  if (purpose == Purpose::plan || !options.example_calls.empty()) {
    settle();
  }
}

Module::Impl::~Impl() = default;

/// How much of the host memory is page-locked in place, and how much for staging.
void Module::Impl::divide_host_memory(const Options& options) {
  const std::uint64_t total = std::accumulate(bytes_.begin(), bytes_.end(), std::uint64_t{0});
  if (options.host_budget && options.pinned_budget && *options.pinned_budget > *options.host_budget) {
    throw InputError("pinned_budget " + format_bytes(*options.pinned_budget) + " is more than host_budget " +
                     format_bytes(*options.host_budget) + ": pinned memory is host memory");
  }
  streamed_pinned_ = total; // on the host nothing has to be page-locked, and nothing staged
  std::uint64_t staging = 0;
  const std::uint64_t pinned_budget = options.pinned_budget.value_or(total);
  if (device_.is_cuda() && pinned_budget < total) {
    staging = std::min(pinned_budget, kStagingBytes) / kStagingBufferBytes * kStagingBufferBytes;
    if (staging < 2 * kStagingBufferBytes) {
      throw InputError("pinned_budget " + format_bytes(pinned_budget) + " is too small: two staging buffers take " +
                       format_bytes(2 * kStagingBufferBytes));
    }
    streamed_pinned_ = (pinned_budget - staging) / kPageBytes * kPageBytes;
  }
  host_bytes_ = total + staging;
  pinned_bytes_ = device_.is_cuda() ? streamed_pinned_ + staging : 0;
  const std::uint64_t host_budget = options.host_budget.value_or(~0ULL);
  if (host_budget < host_bytes_) {
    throw BudgetError("host_budget " + format_bytes(host_budget) + " is too small: weights and staging buffers take " +
                          std::to_string(host_bytes_) + " bytes of host memory",
                      minimum());
  }
}

namespace {

/// The bytes of a weight as a tensor, whatever its dtype and device.
at::Tensor bytes_tensor(const c10::Storage& storage, std::uint64_t begin, std::uint64_t bytes) {
  return at::empty({0}, at::TensorOptions(at::kByte).device(storage.device()))
      .set_(storage, static_cast<std::int64_t>(begin), {static_cast<std::int64_t>(bytes)}, {1});
}

} // namespace

/// Moves the planned weights into the host store and puts placeholders where they were; moves what stays to the device.
/// A weight is freed where it was as soon as it has been moved, so that there is never more than one of them twice.
void Module::Impl::take_over_weights(Owner owner) {
  std::optional<c10::cuda::CUDAGuard> guard;
  if (device_.is_cuda()) {
    guard.emplace(device_);
    fixed_memory_ = DeviceMemory(device_.index(), fixed_, "small weights and buffers");
  }
  auto& weights = program_.weights.weights;
  std::vector<std::string> names;
  names.reserve(weights.size());
  for (const Weight& weight : weights) {
    names.push_back(weight.name);
  }
  Engine::Config config{device_, concurrency_, names, bytes_, offsets_, {}, {}, nullptr};
  config.lender = std::make_shared<WeightLender>(device_, names);
  config.host = HostMemory(std::accumulate(bytes_.begin(), bytes_.end(), std::uint64_t{0}));

  placeholders_.resize(weights.size());
  std::vector<c10::Storage> storages(weights.size());
  std::uint64_t fixed_end = 0;
  replace_tensors(program_.holders, [&](const at::Tensor& tensor) {
    const WeightId id = program_.weights.id_of(tensor);
    Weight& weight = weights[id];
    const std::uint64_t bytes = weight.bytes();
    if (bytes_[id] == 0 && device_.is_cpu()) {
      return tensor; // it stays, and is where it should be
    }
    if (!storages[id] && bytes_[id] > 0) {
      at::from_blob(config.host.data() + offsets_[id], {static_cast<std::int64_t>(bytes)}, at::kByte)
          .copy_(bytes_tensor(weight.storage, weight.begin, bytes));
      storages[id] = make_placeholder(config.lender, id, weight.name, bytes, device_);
      weight.storage = c10::Storage();
    } else if (!storages[id]) {
      storages[id] =
          c10::Storage(c10::Storage::use_byte_size_t(), bytes, at::DataPtr(fixed_memory_.data() + fixed_end, device_));
      bytes_tensor(storages[id], 0, bytes).copy_(bytes_tensor(weight.storage, weight.begin, bytes));
      fixed_end += align_up(bytes, kPlaceBytes);
      weight.storage = c10::Storage();
    }
    const at::Tensor replacement = tensor_on(storages[id], tensor, static_cast<std::int64_t>(weight.begin));
    if (bytes_[id] > 0) {
      placeholders_[id].push_back(replacement);
    }
    return replacement;
  });

  if (owner == Owner::sole) {
    replace_constants(module_, [&](const at::Tensor& tensor) {
      const auto id = program_.weights.ids.find({tensor.storage().unsafeGetStorageImpl(), byte_range(tensor).first});
      const bool moved = id != program_.weights.ids.end() && storages[id->second];
      const auto begin = moved ? static_cast<std::int64_t>(weights[id->second].begin) : 0;
      return moved ? tensor_on(storages[id->second], tensor, begin) : tensor;
    });
  }

  config.host.pin(device_.is_cuda() ? streamed_pinned_ : 0);
  if (device_.is_cuda() && pinned_bytes_ > streamed_pinned_) {
    config.staging = HostMemory(pinned_bytes_ - streamed_pinned_);
    std::fill_n(config.staging.data(), config.staging.bytes(), std::byte{0});
    config.staging.pin(config.staging.bytes());
  }
  engine_ = std::make_unique<Engine>(std::move(config));
}

Placement Module::Impl::placement() const {
  const LoneVisit alone(gate_);
  Placement placement;
  placement.device = device_.str();
  placement.machine = machine_.name;
  placement.rewritten = program_.rewritten;
  placement.writes_state = program_.writes_state;
  Plan planned = plan_;
  if (planned.residency.resident.empty()) { // not settled yet: what is known so far
    planned = plan(planned_pass(), capacity(vram_), machine_);
  }
  std::vector<bool> rows_only(bytes_.size(), true); // read by nothing else, where it can be read in place
  for (const auto& [name, lowered] : program_.methods) {
    for (const PlanStep& step : pass_of(static_steps(name)).steps) {
      for (const WeightId weight : step.weights) {
        rows_only[weight] = false;
      }
    }
  }
  Budget& budget = placement.budget;
  const auto& weights = program_.weights.weights;
  for (WeightId id = 0; id < weights.size(); ++id) {
    if (bytes_[id] == 0) {
      placement.resident_because.push_back({weights[id].name, weights[id].bytes(), program_.stays_because[id]});
      continue;
    }
    const bool resident = planned.residency.resident[id];
    budget.resident += resident ? bytes_[id] : 0;
    placement.weights.push_back({weights[id].name,
                                 weights[id].aliases,
                                 weights[id].bytes(),
                                 program_.uses[id],
                                 {{resident        ? Mode::resident
                                   : rows_only[id] ? Mode::in_place
                                                   : Mode::streamed,
                                   0, weights[id].bytes()}}});
  }
  budget.vram = vram_;
  budget.minimum = minimum();
  budget.fixed = fixed_;
  budget.ring = planned.residency.ring_bytes;
  budget.reserve = reserve_;
  budget.reserve_measured = !measured_.empty();
  budget.host = host_bytes_;
  budget.pinned = pinned_bytes_;
  placement.predicted = {
      planned.predicted.time_us,
      fixed_ + align_up(Engine::slab_bytes_of(planned.residency, bytes_), granularity(device_)) + reserve_,
      planned.predicted.streamed_bytes};
  return placement;
}

Stats Module::Impl::stats() const {
  Stats stats;
  stats.bytes_streamed = engine_->bytes_streamed();
  stats.bytes_ahead = engine_->bytes_ahead();
  stats.copies = engine_->copies();
  stats.stall_us = engine_->stall_us();
  const std::lock_guard lock(mutex_);
  stats.calls = calls_;
  stats.peak_device_bytes = peak_;
  stats.bytes_resident = fixed_;
  for (WeightId id = 0; id < bytes_.size(); ++id) {
    stats.bytes_resident += !plan_.residency.resident.empty() && plan_.residency.resident[id] ? bytes_[id] : 0;
  }
  stats.misses = engine_->misses();
  return stats;
}

c10::IValue Module::Impl::attr(const std::string& name) const {
  const LoneVisit alone(gate_); // nobody changes what stands in the module
  c10::IValue value = module_._ivalue();
  std::string rest = name;
  while (!rest.empty()) {
    const std::string part = rest.substr(0, rest.find('.'));
    rest = part.size() == rest.size() ? "" : rest.substr(part.size() + 1);
    if (!value.isObject() || !value.toObject()->type()->hasAttribute(part)) {
      throw InputError("the module has no attribute '" + name + "'");
    }
    value = value.toObject()->getAttr(part);
  }
  if (!value.isTensor()) {
    return value;
  }
  const auto resident = resident_tensors_.find(value.toTensor().unsafeGetTensorImpl());
  const at::Tensor tensor = resident == resident_tensors_.end() ? value.toTensor() : resident->second.second;
  return placeholder_record(tensor) ? host_copy(tensor) : tensor;
}

/// The values of a placeholder, in memory of their own.
at::Tensor Module::Impl::host_copy(const at::Tensor& placeholder) const {
  const WeightId weight = placeholder_record(placeholder)->weight;
  auto* bytes = const_cast<std::byte*>(engine_->host_bytes(weight));
  const c10::Storage storage(c10::Storage::use_byte_size_t(), bytes_[weight],
                             at::DataPtr(bytes, c10::Device(c10::kCPU)));
  return tensor_on(storage, placeholder).detach().clone();
}

} // namespace offload
