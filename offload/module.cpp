#include <offload/module.h>

#include <ATen/core/grad_mode.h>
#include <c10/core/InferenceMode.h>
#include <c10/util/Exception.h>
#include <torch/csrc/jit/serialization/import.h>

#include <algorithm>
#include <numeric>
#include <ostream>
#include <string_view>
#include <tuple>

#include <offload/load/archive.h>
#include <offload/module_impl.h>
#include <offload/preview.h>

namespace offload {

const LoweredMethod& Module::Impl::method(const std::string& name) const {
  const auto found = program_.methods.find(name);
  if (found == program_.methods.end()) {
    std::string names;
    for (const auto& [other, lowered] : program_.methods) {
      names += (names.empty() ? "" : ", ") + other;
    }
    throw InputError("the module has no method '" + name + "'" + (names.empty() ? "" : ": it has " + names));
  }
  return found->second;
}

const c10::FunctionSchema& Module::Impl::schema(const std::string& name) const { return method(name).schema; }

namespace {

/// Tensors on another device would fail deep in the model; here the argument can be named.
void check_device(const c10::IValue& value, const std::string& argument, c10::Device device) {
  if (value.isTensor()) {
    const at::Tensor& tensor = value.toTensor();
    const bool scalar_on_host = tensor.defined() && tensor.dim() == 0 && tensor.device().is_cpu();
    if (tensor.defined() && tensor.device() != device && !scalar_on_host) {
      throw InputError("argument '" + argument + "' is on " + tensor.device().str() + ", the module runs on " +
                       device.str() + ": move it there with to()");
    }
  } else if (value.isTuple()) {
    for (const c10::IValue& element : value.toTupleRef().elements()) {
      check_device(element, argument, device);
    }
  } else if (value.isList()) {
    for (const c10::IValue& element : value.toListRef()) {
      check_device(element, argument, device);
    }
  }
}

} // namespace

std::vector<c10::IValue> Module::Impl::make_stack(const LoweredMethod& method, std::vector<c10::IValue> inputs,
                                                  const Kwargs& kwargs) const {
  std::vector<c10::IValue> stack = {module_._ivalue()};
  stack.insert(stack.end(), std::make_move_iterator(inputs.begin()), std::make_move_iterator(inputs.end()));
  try {
    method.schema.checkAndNormalizeInputs(stack, kwargs);
  } catch (const c10::Error& error) {
    throw InputError(error.what_without_backtrace());
  } catch (const std::exception& error) {
    throw InputError(error.what());
  }
  for (std::size_t i = 1; i < stack.size(); ++i) {
    check_device(stack[i], method.schema.arguments()[i].name(), device_);
  }
  if (method.takes_constants) {
    stack.emplace_back(program_.holders.back()._ivalue());
  }
  return stack;
}

c10::IValue Module::Impl::run_method(const std::string& name, std::vector<c10::IValue> inputs, const Kwargs& kwargs) {
  const LoweredMethod& lowered = method(name);
  std::vector<c10::IValue> stack = make_stack(lowered, std::move(inputs), kwargs);
  while (true) {
    {
      const LaneVisit visit(gate_);
      bool ready = false;
      {
        const std::lock_guard lock(mutex_);
        ready = settled_;
      }
      if (ready) {
        return run_on(visit.lane(), name, std::move(stack), nullptr);
      }
    }
    const LoneVisit alone(gate_);
    if (settled_) {
      continue; // somebody else was first
    }
    const auto before = std::make_tuple(reserve_, measured_, planned_method_);
    try {
      c10::IValue output = measure(name, std::move(stack));
      require_minimum();
      settle();
      return output;
    } catch (...) {
      std::tie(reserve_, measured_, planned_method_) = before;
      throw;
    }
  }
}

/// A call that shows what calls need. The caller holds all lanes.
c10::IValue Module::Impl::measure(const std::string& name, std::vector<c10::IValue> stack) {
  const std::uint64_t least = minimum() - fixed_ - reserve_;
  const std::uint64_t rest = vram_ - fixed_;
  Lanes& lanes = engine_->lanes();
  // Half of what is over the minimum makes streaming smoother, unless activations that find no room cannot be measured.
  const std::uint64_t spare = may_overflow_ && rest > least + reserve_ ? (rest - least - reserve_) / 2 : 0;
  const std::uint64_t weights = std::accumulate(bytes_.begin(), bytes_.end(), std::uint64_t{0});
  const std::uint64_t more = std::min({spare, 8 * kBatchBytes, weights - std::min(weights, least)});
  const std::uint64_t ring = least + more / granularity(device_) * granularity(device_);
  install({std::vector<bool>(bytes_.size(), false), ring});
  const std::uint64_t reserve = rest - engine_->slab_bytes();
  lanes.set_reserve(reserve);
  {
    const std::lock_guard lock(mutex_);
    plan_.residency = {std::vector<bool>(bytes_.size(), false), ring};
    sequences_.clear();
  }
  std::vector<LeasedStep> trace;
  std::uint64_t needed = 0;
  const auto end_overflow = [&] {
    lanes.allow_overflow(false);
    needed = lanes.demand() * static_cast<std::uint64_t>(concurrency_);
    if (lanes.demand() > reserve) {
      lanes.reset();
    }
  };
  lanes.allow_overflow(may_overflow_);
  c10::IValue output;
  try {
    output = run_on(0, name, std::move(stack), &trace);
  } catch (...) {
    end_overflow();
    throw;
  }
  end_overflow();
  if (device_.is_cuda()) {
    reserve_ = std::max(measured_.empty() ? 0 : reserve_, align_up(needed, kDeviceGranularity));
  }
  measured_[name] = std::move(trace);
  planned_method_ = measured_.count(planned_method_) > 0 ? planned_method_ : name;
  return output;
}

/// Refuses the budget if the calls that were measured do not fit it.
void Module::Impl::require_minimum() const {
  const std::uint64_t least = minimum();
  if (vram_ >= least) {
    return;
  }
  throw BudgetError((measured_.empty() ? "" : "activations and workspaces take " + format_bytes(reserve_) + ": ") +
                        "vram_budget " + format_bytes(vram_) + " (" + std::to_string(vram_) +
                        " bytes) is too small: the smallest that works is " + std::to_string(least) + " bytes",
                    least);
}

void Module::Impl::refuse_activations(std::uint64_t refused) {
  std::uint64_t needed = 0;
  {
    const std::lock_guard lock(mutex_);
    needed = minimum() - reserve_ + engine_->lanes().reserved() + align_up(refused, kDeviceGranularity);
    settled_ = false; // the next call is measured anew, with all the budget that there is
  }
  throw BudgetError("activations and workspaces of this call go over the reserve of " + format_bytes(reserve_) +
                        " in a vram_budget of " + format_bytes(vram_) + ": it takes at least " +
                        std::to_string(needed) +
                        " bytes; the next call is measured anew. Name such a call in example_calls to plan for it",
                    needed);
}

c10::IValue Module::Impl::run_on(int lane, const std::string& name, std::vector<c10::IValue> stack,
                                 std::vector<LeasedStep>* trace) {
  Streamer& streamer = engine_->streamer();
  const std::vector<c10::IValue> inputs(stack.begin() + 1,
                                        stack.end()); // read by the lane until the caller's stream waits
  const auto expected = sequence_of(name);
  c10::IValue output;
  Sequence executed;
  engine_->lanes().take_refused();
  try {
    const at::NoGradGuard no_grad;
    const auto call = engine_->lanes().enter(lane);
    const WeightLender::Scope scope(engine_->lender(), lane, trace);
    streamer.begin(lane, expected);
    try {
      output = take_out(*call, run_code(codes_.at(name), std::move(stack)));
      stack.clear();
    } catch (...) {
      streamer.end(lane);
      throw;
    }
    executed = streamer.end(lane);
  } catch (const std::exception& error) {
    // The interpreter gives errors of operators a type of its own: the text is what is left of an OutOfMemoryError.
    const std::uint64_t refused = engine_->lanes().take_refused();
    if (refused > 0 && std::string_view(error.what()).find("out of memory") != std::string_view::npos) {
      refuse_activations(refused);
    }
    throw;
  }
  auto next = expected;
  {
    const std::lock_guard lock(mutex_);
    ++calls_;
    if (executed != *expected) {
      next = std::make_shared<const Sequence>(std::move(executed));
      sequences_[name] = next;
    }
  }
  if (!trace) {
    streamer.expect(lane, next);
  }
  note_peak();
  return output;
}

namespace {

/// Calls `visit` for every tensor in a value that a call returns, and puts what it gives in its place.
c10::IValue map_tensors(const c10::IValue& value, const std::function<at::Tensor(const at::Tensor&)>& visit) {
  if (value.isTensor()) {
    return value.toTensor().defined() ? c10::IValue(visit(value.toTensor())) : value;
  }
  if (value.isTuple()) {
    std::vector<c10::IValue> elements;
    for (const c10::IValue& element : value.toTupleRef().elements()) {
      elements.push_back(map_tensors(element, visit));
    }
    const auto type = value.toTupleRef().type<c10::TupleType>();
    return type->schema() ? c10::ivalue::Tuple::createNamed(std::move(elements), type)
                          : c10::ivalue::Tuple::create(std::move(elements));
  }
  if (value.isTensorList()) {
    auto list = value.toTensorList();
    for (std::size_t i = 0; i < list.size(); ++i) {
      list.set(i, visit(list.get(i)));
    }
  } else if (value.isList()) {
    auto list = value.toList();
    for (std::size_t i = 0; i < list.size(); ++i) {
      list.set(i, map_tensors(list.get(i), visit));
    }
  } else if (value.isGenericDict()) {
    auto dict = value.toGenericDict();
    std::vector<std::pair<c10::IValue, c10::IValue>> entries;
    for (const auto& entry : dict) {
      entries.emplace_back(entry.key(), entry.value());
    }
    for (const auto& [key, entry] : entries) {
      dict.insert_or_assign(key, map_tensors(entry, visit));
    }
  }
  return value;
}

} // namespace

/// Copies what must not leave the call: memory of its lane, of leases, and weights themselves.
c10::IValue Module::Impl::take_out(Lanes::Call& call, const c10::IValue& output) const {
  std::vector<at::Tensor> inner;
  std::vector<std::size_t> order; // for each tensor visited that is copied, its position in `inner`
  const auto must_be_copied = [&](const at::Tensor& tensor) {
    if (!is_weight_like(tensor) || tensor.numel() == 0) {
      return false;
    }
    const void* address = tensor.storage().data();
    return engine_->owns(address) || fixed_memory_.contains(address) || engine_->lanes().owns(address);
  };
  const c10::IValue filled = map_tensors(output, [&](const at::Tensor& tensor) {
    return placeholder_record(tensor) ? host_copy(tensor).to(device_) : tensor;
  });
  map_tensors(filled, [&](const at::Tensor& tensor) {
    if (must_be_copied(tensor)) {
      inner.push_back(tensor);
    }
    return tensor;
  });
  const std::vector<at::Tensor> outer = call.leave(inner);
  std::size_t next = 0;
  return map_tensors(filled, [&](const at::Tensor& tensor) { return must_be_copied(tensor) ? outer[next++] : tensor; });
}

Module::Module(std::shared_ptr<Impl> impl) : impl_(std::move(impl)) {}

c10::IValue Module::forward(std::vector<c10::IValue> inputs, const Kwargs& kwargs) {
  return impl_->run_method("forward", std::move(inputs), kwargs);
}

c10::IValue Module::run_method(const std::string& name, std::vector<c10::IValue> inputs, const Kwargs& kwargs) {
  return impl_->run_method(name, std::move(inputs), kwargs);
}

c10::IValue Module::attr(const std::string& name) const { return impl_->attr(name); }
const c10::FunctionSchema& Module::schema(const std::string& method) const { return impl_->schema(method); }
c10::Device Module::device() const { return impl_->device(); }
Placement Module::placement() const { return impl_->placement(); }
Stats Module::stats() const { return impl_->stats(); }
void Module::set_vram_budget(std::uint64_t bytes) { impl_->set_vram_budget(bytes); }

std::ostream& operator<<(std::ostream& out, const Stats& stats) {
  return out << "calls " << stats.calls << ", streamed " << format_bytes(stats.bytes_streamed) << " in " << stats.copies
             << " copies, resident " << format_bytes(stats.bytes_resident) << ", misses " << stats.misses
             << ", stalled " << stats.stall_us / 1e3 << " ms, peak " << format_bytes(stats.peak_device_bytes)
             << " on the device\n";
}

Module wrap(torch::jit::Module module, const Options& options) {
  using Impl = Module::Impl;
  return Module(
      std::make_shared<Impl>(std::move(module), options, std::nullopt, Impl::Purpose::run, Impl::Owner::shared));
}

Module load(const std::string& path, const Options& options) {
  using Impl = Module::Impl;
  return Module(
      std::make_shared<Impl>(read_archive(path), options, std::nullopt, Impl::Purpose::run, Impl::Owner::sole));
}

Placement preview(torch::jit::Module module, const Options& options, const std::optional<MachineProfile>& machine) {
  using Impl = Module::Impl;
  const Impl impl(std::move(module), options, machine, Impl::Purpose::plan, Impl::Owner::shared);
  return impl.placement();
}

} // namespace offload
