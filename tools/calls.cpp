#include <tools/calls.h>

#include <algorithm>

#include <offload/error.h>
#include <tools/inputs.h>

namespace offload::tools {

void CallArguments::add_calls_to(CLI::App& app, const std::vector<std::string>& formats) {
  add_to(app, formats);
  app.add_option("--inputs", inputs_file, "a file of calls, as torch.save([[x0], [x1]], FILE) writes it");
  app.add_option("--method", method, "the method to call");
}

bool CallArguments::give_calls() const { return !inputs_file.empty() || !inputs.empty(); }

std::vector<Call> CallArguments::make_calls(const torch::jit::Module& module, c10::Device on) const {
  const c10::FunctionSchema& schema = schema_of(module, method);
  if (!inputs_file.empty()) {
    if (!inputs.empty()) {
      throw InputError("--input and --inputs contradict each other: give one of them");
    }
    return read_inputs(inputs_file, on, schema);
  }
  if (inputs.empty() && !needs_no_inputs(schema)) {
    throw InputError("the method needs inputs: " + describe_signature(schema));
  }
  return {make_inputs(on)};
}

std::vector<ExampleCall> CallArguments::examples_of(const std::vector<Call>& calls) const {
  std::vector<ExampleCall> examples;
  std::vector<std::string> seen;
  for (const Call& call : calls) {
    std::string shapes;
    for (const c10::IValue& input : call) {
      shapes += describe_size(input) + ' ';
    }
    if (std::find(seen.begin(), seen.end(), shapes) == seen.end()) {
      seen.push_back(shapes);
      examples.push_back({method, call, {}});
    }
  }
  return examples;
}

} // namespace offload::tools
