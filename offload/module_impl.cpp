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

#include <offload/graph/lower.h>
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
                   Purpose purpose)
    : module_(std::move(module)),
      device_(device_of(options)),
      concurrency_(options.concurrency),
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
  if (module_.is_training()) {
    TORCH_WARN(
        "the module is in training mode: dropout and running statistics work as in training; call eval() before "
        "saving it");
  }
  const c10::InferenceMode no_inference_mode(false);
  program_ = make_program(module_, device_);
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
  replace_tensors(module_, [&](const at::Tensor& tensor) {
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
  if (vram_ < minimum()) {
    throw BudgetError("vram_budget " + format_bytes(vram_) + " (" + std::to_string(vram_) +
                          " bytes) is too small: the smallest that works is " + std::to_string(minimum()) + " bytes",
                      minimum());
  }
  if (purpose == Purpose::run || !options.example_calls.empty()) {
    take_over_weights();
    for (const ExampleCall& call : options.example_calls) {
      measure(call.method, make_stack(method(call.method), call.inputs, call.kwargs));
    }
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
void Module::Impl::take_over_weights() {
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
  replace_tensors(module_, [&](const at::Tensor& tensor) {
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
    at::Tensor replacement = tensor_on(storages[id], tensor, static_cast<std::int64_t>(weight.begin));
    replacement.set_requires_grad(tensor.requires_grad());
    if (bytes_[id] > 0) {
      placeholders_[id].push_back(replacement);
    }
    return replacement;
  });

  config.host.pin(device_.is_cuda() ? streamed_pinned_ : 0);
  if (device_.is_cuda() && pinned_bytes_ > streamed_pinned_) {
    config.staging = HostMemory(pinned_bytes_ - streamed_pinned_);
    std::fill_n(config.staging.data(), config.staging.bytes(), std::byte{0});
    config.staging.pin(config.staging.bytes());
  }
  engine_ = std::make_unique<Engine>(std::move(config));
}

std::uint64_t Module::Impl::default_reserve() const {
  return device_.is_cuda() ? 64_MiB * static_cast<std::uint64_t>(concurrency_) : 0;
}

/// The smallest budget, with the reserve as it is known by now. The ring holds one node's weights for each lane: with
/// one lane that is exact, with more they wait for each other.
std::uint64_t Module::Impl::minimum() const {
  return fixed_ + align_up(minimum_capacity(planned_pass()), granularity(device_)) + reserve_;
}

/// What is planned for: the steps of one method as they were measured, or else as the graph has them. What other
/// methods and branches that were not taken read must find room, too.
Pass Module::Impl::planned_pass() const {
  const auto measured = measured_.find(planned_method_);
  Pass pass = pass_of(measured != measured_.end() ? measured->second : static_steps(planned_method_));
  const auto add = [&](const std::vector<LeasedStep>& steps) {
    for (PlanStep& step : pass_of(steps).steps) {
      pass.other_steps.push_back(std::move(step.weights));
    }
  };
  for (const auto& [name, lowered] : program_.methods) {
    add(static_steps(name));
  }
  for (const auto& [name, steps] : measured_) {
    add(steps);
  }
  std::sort(pass.other_steps.begin(), pass.other_steps.end());
  pass.other_steps.erase(std::unique(pass.other_steps.begin(), pass.other_steps.end()), pass.other_steps.end());
  return pass;
}

/// What resident weights and ring may take.
std::uint64_t Module::Impl::capacity(std::uint64_t vram) const {
  const std::uint64_t rest = vram - fixed_ - reserve_;
  return rest / granularity(device_) * granularity(device_);
}

std::vector<LeasedStep> Module::Impl::static_steps(const std::string& name) const {
  std::vector<LeasedStep> steps;
  const auto lowered = program_.methods.find(name);
  if (lowered != program_.methods.end()) {
    for (const LoweredStep& step : lowered->second.steps) {
      const auto times = static_cast<int>(std::min(step.times, 1000.0));
      steps.insert(steps.end(), times, {step.weights, 0, step.rows_only});
    }
  }
  return steps;
}

double Module::Impl::compute_us(const LeasedStep& step) const {
  double bytes = 0;
  for (const WeightId weight : step.weights) {
    bytes += static_cast<double>(bytes_[weight]);
  }
  const at::ScalarType dtype = step.weights.empty() ? at::kFloat : dtypes_[step.weights.front()];
  const double rate = dtype == at::kDouble                           ? machine_.fp64_flops_per_us
                      : dtype == at::kBFloat16 || dtype == at::kHalf ? machine_.half_flops_per_us
                                                                     : machine_.fp32_flops_per_us;
  return std::max(step.flops / rate, bytes / machine_.memory_bytes_per_us);
}

Pass Module::Impl::pass_of(const std::vector<LeasedStep>& steps) const {
  Pass pass;
  pass.bytes = bytes_;
  pass.pinned_bytes = streamed_pinned_;
  for (const LeasedStep& step : steps) {
    const bool in_place = step.rows_only && std::all_of(step.weights.begin(), step.weights.end(),
                                                        [&](WeightId weight) { return read_in_place(weight); });
    if (in_place) {
      pass.steps.push_back({{}, 0});
    } else {
      pass.steps.push_back({step.weights, compute_us(step)});
    }
  }
  return pass;
}

bool Module::Impl::read_in_place(WeightId weight) const {
  return offsets_[weight] + bytes_[weight] <= streamed_pinned_;
}

/// What is noted on a linear for the weight of this name.
std::string Module::Impl::mode_of(const std::string& name, const Residency& residency) const {
  const auto& weights = program_.weights.weights;
  for (WeightId id = 0; id < weights.size(); ++id) {
    const bool same = weights[id].name == name || std::find(weights[id].aliases.begin(), weights[id].aliases.end(),
                                                            name) != weights[id].aliases.end();
    if (same) {
      return to_string(bytes_[id] == 0 || residency.resident[id] ? Mode::resident : Mode::streamed);
    }
  }
  return "unknown";
}

/// Places weights, and makes module and graphs fit: resident weights stand in the module as they are, streamed ones as
/// placeholders. The caller holds all lanes.
void Module::Impl::install(const Residency& residency) {
  const auto put_placeholders_back = [&](const at::Tensor& tensor) {
    const auto resident = resident_tensors_.find(tensor.unsafeGetTensorImpl());
    return resident == resident_tensors_.end() ? tensor : resident->second.second;
  };
  replace_tensors(module_, put_placeholders_back);
  resident_tensors_.clear();
  codes_.clear();
  engine_->place(residency, placeholders_);
  replace_tensors(module_, [&](const at::Tensor& tensor) {
    const PlaceholderRecord* record = placeholder_record(tensor);
    if (!record || !residency.resident[record->weight]) {
      return tensor;
    }
    const at::Tensor resident = engine_->lender().resident_tensor(record->weight, tensor);
    resident_tensors_[resident.unsafeGetTensorImpl()] = {resident, tensor};
    return resident;
  });
  for (auto& [name, lowered] : program_.methods) {
    auto graph = raise_resident(*lowered.graph, residency.resident);
    annotate_linears(*graph, [&](const std::string& weight) { return mode_of(weight, residency); });
    codes_.emplace(name, torch::jit::Code(graph, name));
  }
}

/// Plans with what is known by now, and places accordingly if there is an engine. Callers hold all lanes, or are alone.
void Module::Impl::settle() {
  Plan best = plan(planned_pass(), capacity(vram_), machine_);
  if (best.residency.ring_bytes == 0) { // room is left: what is read in place is read faster on the device
    std::uint64_t taken = Engine::slab_bytes_of(best.residency, bytes_);
    for (WeightId id = 0; id < bytes_.size(); ++id) {
      if (!best.residency.resident[id] && !program_.uses[id].empty() && taken + bytes_[id] <= capacity(vram_)) {
        best.residency.resident[id] = true;
        taken += bytes_[id];
      }
    }
  }
  if (engine_) {
    install(best.residency);
    engine_->lanes().set_reserve(reserve_);
    note_peak();
  }
  const std::lock_guard lock(mutex_);
  plan_ = std::move(best);
  settled_ = engine_ != nullptr;
  sequences_.clear();
  for (const auto& [name, steps] : measured_) {
    sequences_[name] = std::make_shared<const Sequence>(streamed_sequence(pass_of(steps), plan_.residency.resident));
  }
}

std::shared_ptr<const Sequence> Module::Impl::sequence_of(const std::string& name) {
  const std::lock_guard lock(mutex_);
  auto& sequence = sequences_[name];
  if (!sequence) {
    sequence =
        std::make_shared<const Sequence>(streamed_sequence(pass_of(static_steps(name)), plan_.residency.resident));
  }
  return sequence;
}

void Module::Impl::note_peak() {
  const std::uint64_t now = fixed_ + engine_->slab_bytes() + engine_->lanes().high_water();
  const std::lock_guard lock(mutex_);
  peak_ = std::max(peak_, now);
}

void Module::Impl::set_vram_budget(std::uint64_t bytes) {
  const LoneVisit alone(gate_);
  if (bytes < minimum()) {
    throw BudgetError("vram_budget " + format_bytes(bytes) + " (" + std::to_string(bytes) +
                          " bytes) is too small: the smallest that works is " + std::to_string(minimum()) + " bytes",
                      minimum());
  }
  const std::uint64_t before = vram_;
  vram_ = bytes;
  {
    const std::lock_guard lock(mutex_);
    peak_ = 0;
  }
  if (!settled_) {
    return; // the next call measures, and plans
  }
  try {
    settle();
  } catch (...) {
    vram_ = before;
    settle(); // what fitted before; if even that has gone, its error tells
    throw;
  }
}

Placement Module::Impl::placement() const {
  const LoneVisit alone(gate_);
  Placement placement;
  placement.device = device_.str();
  placement.machine = machine_.name;
  placement.rewritten = program_.rewritten;
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
  return tensor_on(storage, placeholder).clone();
}

} // namespace offload
