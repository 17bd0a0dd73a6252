#include <offload/graph/program.h>

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <torch/csrc/jit/api/function_impl.h>

#include <algorithm>
#include <set>

#include <offload/graph/constants.h>
#include <offload/graph/prepare.h>

namespace offload {

namespace {

/// Methods that a program calls; what pickling calls is none of them.
bool is_callable(const torch::jit::Method& method) {
  return !method.name().starts_with("__") && torch::jit::tryToGraphFunction(method.function()) != nullptr;
}

} // namespace

Program make_program(const torch::jit::Module& module, c10::Device device, DeviceConstants device_constants) {
  Program program;
  std::map<std::string, std::shared_ptr<torch::jit::Graph>> graphs;
  torch::jit::Module constants("Constants");
  for (const torch::jit::Method& method : module.get_methods()) {
    if (is_callable(method)) {
      const auto graph = prepare_method(module, method.name());
      take_constants(*graph, constants);
      if (device_constants == DeviceConstants::rewrite) {
        rewrite_devices(graph, device, program.rewritten);
      }
      graphs[method.name()] = graph;
    }
  }
  program.holders = {module, constants};
  program.weights = find_weights(program.holders);
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
  };
  std::map<std::string, Prepared> prepared;
  for (auto& [name, graph] : graphs) {
    fold_attributes(graph, program.holders);
    WeightTrace trace = trace_weights(*graph, program.holders, program.weights);
    for (const auto& [id, because] : trace.resident_because) {
      program.stays_because[id] = because;
    }
    program.writes_state = program.writes_state || trace.writes_state;
    prepared[name] = {graph, std::move(trace)};
  }
  std::vector<bool> stays;
  stays.reserve(count);
  for (const std::string& because : program.stays_because) {
    stays.push_back(!because.empty());
  }
  for (auto& [name, method] : prepared) {
    for (const Reader& reader : method.trace.readers) {
      for (const Reader::Input& input : reader.inputs) {
        for (const WeightId id : input.weights) {
          program.uses[id].emplace_back(reader.node->kind().toQualString());
        }
      }
    }
    auto steps = lower(*method.graph, method.trace, stays);
    program.methods.emplace(
        name, LoweredMethod{module.get_method(name).function().getSchema(), method.graph, std::move(steps),
                            method.graph->inputs().back()->type() == constants.type()});
  }
  return program;
}

c10::IValue run_code(const torch::jit::Code& code, std::vector<c10::IValue> stack) {
  const at::NoGradGuard no_grad;
  torch::jit::InterpreterState state(code, [](const std::function<void()>& task) { task(); });
  state.run(stack);
  return stack.empty() ? c10::IValue() : std::move(stack.front());
}

Reference::Reference(torch::jit::Module module, c10::Device device, DeviceConstants constants)
    : module_(std::move(module)), device_(device), constants_(constants) {}

c10::IValue Reference::run(const std::string& method, std::vector<c10::IValue> inputs,
                           const std::unordered_map<std::string, c10::IValue>& kwargs) {
  auto code = codes_.find(method);
  if (code == codes_.end()) {
    const auto graph = prepare_method(module_, method);
    if (constants_ == DeviceConstants::rewrite) {
      std::vector<std::string> rewritten;
      rewrite_devices(graph, device_, rewritten);
    }
    code = codes_.emplace(method, torch::jit::Code(graph, method)).first;
  }
  std::vector<c10::IValue> stack = {module_._ivalue()};
  stack.insert(stack.end(), inputs.begin(), inputs.end());
  module_.get_method(method).function().getSchema().checkAndNormalizeInputs(stack, kwargs);
  return run_code(code->second, std::move(stack));
}

} // namespace offload
