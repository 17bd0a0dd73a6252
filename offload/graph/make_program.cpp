#include <offload/graph/make_program.h>

#include <torch/csrc/jit/api/function_impl.h>

#include <algorithm>
#include <string_view>
#include <utility>

#include <offload/error.h>
#include <offload/graph/constants.h>
#include <offload/graph/gradients.h>
#include <offload/graph/lower.h>
#include <offload/graph/method_code.h>
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

/// Methods that a program calls; what pickling calls is none of them.
bool is_callable(const torch::jit::Method& method) {
  return !method.name().starts_with("__") && torch::jit::tryToGraphFunction(method.function()) != nullptr;
}

void refuse_unusable(const torch::jit::Module& module) {
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
}

} // namespace

Program make_program(const torch::jit::Module& module, c10::Device device, DeviceConstants device_constants,
                     Gradients gradients) {
  refuse_unusable(module);
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
  program.holders = {module._ivalue(), constants._ivalue()};
  for (const c10::IValue& holder : program.holders) {
    visit_objects(holder, [&](const c10::IValue& object) {
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
        name,
        LoweredMethod{module.get_method(name).function().getSchema(),
                      std::make_shared<LoweredMethod::Code>(LoweredMethod::Code{method.graph, {}}), std::move(steps),
                      std::move(choices), method.graph->inputs().back()->type() == constants.type(), method.gradients,
                      differentiates(*method.graph),
                      method.gradients == Gradients::callers || enables_gradients(*method.graph)});
  }
  return program;
}

} // namespace offload
