#pragma once

#include <string>
#include <vector>

#include <tools/cli.h>

namespace offload::tools {

using Call = std::vector<c10::IValue>;

/// The options that say which calls are made, or planned for: the same for every command, so that all of them name the
/// same smallest budget.
struct CallArguments : ModelArguments {
  std::string inputs_file;
  std::string method = "forward";

  /// With those of the model.
  void add_calls_to(CLI::App& app, const std::vector<std::string>& formats = {"table", "json"});

  /// True when calls are given, by --input or by --inputs.
  bool give_calls() const;

  /// The calls that are given, or one without arguments; tensors are on `on`. Throws InputError when there is no such
  /// method, or when it needs inputs.
  std::vector<Call> make_calls(const torch::jit::Module& module, c10::Device on) const;

  /// One call of each shape: what differs in what activations it takes.
  std::vector<ExampleCall> examples_of(const std::vector<Call>& calls) const;
};

} // namespace offload::tools
