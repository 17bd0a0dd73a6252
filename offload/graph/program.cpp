#include <offload/graph/program.h>

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <torch/csrc/jit/api/function_impl.h>

#include <algorithm>
#include <set>
#include <string_view>
#include <unordered_map>

#include <offload/error.h>
#include <offload/graph/constants.h>
#include <offload/graph/prepare.h>
#include <offload/graph/rewrite_devices.h>
#include <offload/tensor/values.h>

namespace offload {

namespace {

/// What PyTorch puts before the names of classes that are registered in C++.
constexpr std::string_view kClassesInCpp = "__torch__.torch.classes.";

/// True when a node asks for the storage behind a tensor.
bool reaches_past_tensors(torch::jit::Graph& graph) {
  bool reaches = false;
  for_each_node(graph.block(), [&](const torch::jit::Node* node) {
    const std::string_view name = node->kind().toUnqualString();
    reaches = reaches || name == "as_strided" || name == "storage_offset" || name == "set_";
  });
  return reaches;
}

/// What a method runs under, by what it does before branches that attributes decide are gone.
Gradients gradients_of(torch::jit::Graph& graph, Gradients wanted) {
  return differentiates(graph) == Differentiates::never ? Gradients::off : wanted;
}

/// Methods that a program calls; what pickling calls is none of them.
bool is_callable(const torch::jit::Method& method) {
  return !method.name().starts_with("__") && torch::jit::tryToGraphFunction(method.function()) != nullptr;
}

} // namespace

Program make_program(const torch::jit::Module& module, c10::Device device, DeviceConstants device_constants,
                     Gradients gradients) {
  Program program;
  std::map<std::string, std::shared_ptr<torch::jit::Graph>> graphs;
  torch::jit::Module constants("Constants");
  for (const torch::jit::Method& method : module.get_methods()) {
    if (is_callable(method)) {
      graphs[method.name()] = prepare_method(module, method.name());
    }
  }
  Storages written_storages; // what one method writes, another may read
  for (const auto& [name, graph] : graphs) {
    written_storages.merge(written_constants(*graph));
  }
  for (const auto& [name, graph] : graphs) {
    take_constants(*graph, constants, written_storages);
    if (device_constants == DeviceConstants::rewrite) {
      rewrite_devices(
          graph, device,
          [&](const at::Tensor& tensor) { // none that is written: those are attributes by now
            return is_weight_like(tensor) ? copy_bytes(tensor, device) : tensor.is_meta() ? tensor : tensor.to(device);
          },
          program.rewritten);
    }
  }
  program.holders = {module, constants};
  for (const torch::jit::Module& holder : program.holders) {
    visit_objects(holder._ivalue(), [&](const c10::IValue& object) {
      if (object.isCustomClass()) {
        const std::string name = object.toObjectRef().type()->name()->qualifiedName();
        program.unseen.push_back(name.substr(name.starts_with(kClassesInCpp) ? kClassesInCpp.size() : 0));
      }
    });
  }
  const bool reaches_past =
      std::any_of(graphs.begin(), graphs.end(), [](const auto& entry) { return reaches_past_tensors(*entry.second); });
  program.weights = find_weights(program.holders, reaches_past ? Extent::storages : Extent::ranges);
  const std::size_t count = program.weights.weights.size();
  program.stays_because.resize(count);
  program.uses.resize(count);
  for (WeightId id = 0; id < count; ++id) {
    if (program.weights.weights[id].bytes() < kSmallBytes) {
      program.stays_because[id] = "small";
    }
  }

  // What one method writes must stay for all of them, so all are traced before any is lowered.
  struct Prepared {
    std::shared_ptr<torch::jit::Graph> graph;
    WeightTrace trace;
    Gradients gradients;
  };
  std::map<std::string, Prepared> prepared;
  const AttributeNames written = written_attributes(module);
  for (auto& [name, graph] : graphs) {
    const Gradients mode = gradients_of(*graph, gradients);
    fold_attributes(graph, program.holders, written, mode);
    WeightTrace trace = trace_weights(*graph, program.holders, written, program.weights);
    for (const auto& [id, because] : trace.resident_because) {
      program.stays_because[id] = because;
    }
    program.writes_state = program.writes_state || trace.writes_state;
    prepared[name] = {graph, std::move(trace), mode};
  }
  std::vector<bool> stays;
  stays.reserve(count);
  for (const std::string& because : program.stays_because) {
    stays.push_back(!because.empty());
  }
  for (auto& [name, method] : prepared) {
    auto [steps, choices] = lower(*method.graph, method.trace, stays);
    for (const LoweredStep& step : steps) {
      for (const WeightId id : step.weights) {
        program.uses[id].push_back({step.op, to_string(step.taken)});
      }
    }
    program.methods.emplace(
        name, LoweredMethod{module.get_method(name).function().getSchema(), method.graph, std::move(steps),
                            std::move(choices), method.graph->inputs().back()->type() == constants.type(),
                            method.gradients, differentiates(*method.graph),
                            method.gradients == Gradients::callers || enables_gradients(*method.graph)});
  }
  return program;
}

namespace {

[[noreturn]] void refuse_without_gradients(const LoweredMethod& method, const std::string& more) {
  throw InputError("method '" + method.schema.name() + "' calls torch.autograd.grad, and " +
                   (method.gradients == Gradients::callers
                        ? "its caller has turned gradients off: turn them on"
                        : "calls run without gradients: call torch.set_grad_enabled(True) in the model, or give "
                          "Options::gradients = Gradients::callers and call it with gradients on") +
                   more);
}

} // namespace

void LoweredMethod::require_gradients() const {
  if (differentiates == Differentiates::always && !holds_weights) {
    refuse_without_gradients(*this, "");
  }
}

void LoweredMethod::require_gradients(bool enabled, const std::string& error) const {
  constexpr std::string_view kOfAutograd = "does not require grad and does not have a grad_fn";
  if (!enabled && differentiates != Differentiates::never && error.find(kOfAutograd) != std::string::npos) {
    refuse_without_gradients(*this, std::string(" (element 0 of tensors ") + kOfAutograd.data() + ")");
  }
}

c10::IValue run_code(const torch::jit::Code& code, std::vector<c10::IValue> stack, bool gradients) {
  const at::AutoGradMode mode(gradients);
  torch::jit::InterpreterState state(code, [](const std::function<void()>& task) { task(); });
  state.run(stack);
  return stack.empty() ? c10::IValue() : std::move(stack.front());
}

Reference::Reference(torch::jit::Module module, c10::Device device, DeviceConstants constants, Gradients gradients)
    : module_(std::move(module)), device_(device), constants_(constants), gradients_(gradients) {
  replace_tensors({module_}, [&](const at::Tensor& tensor) { return moved(tensor); });
  moved_.clear(); // constants of graphs have storages of their own
}

/// As torch::jit::load(path, device) does: storage by storage, so that views of one storage stay that.
at::Tensor Reference::moved(const at::Tensor& tensor) {
  if (!is_weight_like(tensor) || tensor.device() == device_) {
    return tensor.is_meta() ? tensor : tensor.to(device_);
  }
  auto& [from, to] = moved_[tensor.storage().unsafeGetStorageImpl()];
  if (!to) {
    from = tensor.storage();
    const auto bytes = static_cast<std::int64_t>(tensor.storage().nbytes());
    const at::Tensor all =
        at::empty({0}, at::TensorOptions(at::kByte).device(tensor.device())).set_(tensor.storage(), 0, {bytes}, {1});
    to = all.to(device_).storage();
  }
  return tensor_on(to, tensor);
}

c10::IValue Reference::run(const std::string& method, std::vector<c10::IValue> inputs,
                           const std::unordered_map<std::string, c10::IValue>& kwargs) {
  auto code = codes_.find(method);
  if (code == codes_.end()) {
    const auto graph = prepare_method(module_, method);
    if (constants_ == DeviceConstants::rewrite) {
      std::vector<std::string> rewritten;
      rewrite_devices(graph, device_, [&](const at::Tensor& tensor) { return moved(tensor); }, rewritten);
    }
    const Gradients mode = gradients_of(*graph, gradients_);
    code = codes_.emplace(method, std::pair(torch::jit::Code(graph, method), mode)).first;
  }
  std::vector<c10::IValue> stack = {module_._ivalue()};
  stack.insert(stack.end(), inputs.begin(), inputs.end());
  module_.get_method(method).function().getSchema().checkAndNormalizeInputs(stack, kwargs);
  const auto& [compiled, mode] = code->second;
  return run_code(compiled, std::move(stack), mode == Gradients::callers && at::GradMode::is_enabled());
}

} // namespace offload
