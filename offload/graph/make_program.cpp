#include <offload/graph/make_program.h>

#include <torch/csrc/jit/api/function_impl.h>

#include <map>
#include <memory>
#include <string>
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
  return any_node(graph.block(), [](const torch::jit::Node* node) {
    const std::string_view name = node->kind().toUnqualString();
    return name == "as_strided" || name == "storage_offset" || name == "set_";
  });
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
  struct Prepared {
    std::shared_ptr<torch::jit::Graph> graph;
    Gradients gradients = Gradients::off;
    WeightTrace trace = {};
  };
  refuse_unusable(module);
  Program program;
  std::map<std::string, Prepared> prepared;
  torch::jit::Module constants("Constants");
  for (const torch::jit::Method& method : module.get_methods()) {
    // What pickling calls is nothing that a program does.
    if (!method.name().starts_with("__") && torch::jit::tryToGraphFunction(method.function())) {
      prepared[method.name()].graph = prepare_method(module, method.name());
    }
  }
  Storages written_storages; // what one method writes, another may read
  for (const auto& [name, method] : prepared) {
    written_storages.merge(written_constants(*method.graph));
  }
  bool reaches_past = false;
  for (const auto& [name, method] : prepared) {
    take_constants(*method.graph, constants, written_storages);
    if (device_constants == DeviceConstants::rewrite) {
      rewrite_devices(
          method.graph, device,
          [&](const at::Tensor& tensor) { // none that is written: those are attributes by now
            return is_weight_like(tensor) ? copy_bytes(tensor, device) : tensor.is_meta() ? tensor : tensor.to(device);
          },
          program.rewritten);
    }
    reaches_past = reaches_past || reaches_past_tensors(*method.graph);
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
  program.weights = find_weights(program.holders, reaches_past ? Extent::storages : Extent::ranges);
  for (const Weight& weight : program.weights.weights) {
    program.stays_because.emplace_back(weight.bytes() < kSmallBytes ? "small" : "");
  }
  program.uses.resize(program.weights.weights.size());

  // What one method writes must stay for all of them, so all are traced before any is lowered.
  const AttributeNames written = written_attributes(module);
  for (auto& [name, method] : prepared) {
    method.gradients = gradients_of(*method.graph, gradients);
    fold_attributes(method.graph, program.holders, written, method.gradients);
    method.trace = trace_weights(*method.graph, program.holders, written, program.weights);
    for (const auto& [id, because] : method.trace.resident_because) {
      program.stays_because[id] = because;
    }
    program.writes_state = program.writes_state || method.trace.writes_state;
  }
  std::vector<bool> stays;
  for (const std::string& because : program.stays_because) {
    stays.push_back(!because.empty());
  }
  for (const auto& [name, method] : prepared) {
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
