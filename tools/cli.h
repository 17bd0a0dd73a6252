#pragma once

#include <torch/csrc/jit/api/module.h>

#include <CLI/CLI.hpp>

#include <optional>
#include <string>
#include <vector>

#include <offload/options.h>

namespace offload::tools {

/// The exit codes of every command.
enum ExitCode { kDone = 0, kWrongResult = 1, kBadUsage = 2, kFailed = 3 };

/// The options that say where models run, and in how much memory.
struct DeviceArguments {
  std::optional<std::string> vram;
  std::optional<std::string> host;
  std::optional<std::string> pinned;
  std::optional<std::string> device;
  std::vector<std::string> libraries;
  bool copy_file = false;
  bool keep_devices = false;
  bool gradients = false;

  void add_to(CLI::App& app);
  Options device_options() const; ///< with a progress bar where standard error is a terminal

  /// Loads what defines operators of the model. Throws InputError that names the file.
  void load_libraries() const;
};

/// The options of whatever runs one model; tools/calls.h has those that say what is called.
struct ModelArguments : DeviceArguments {
  std::string model;
  std::string rule = to_string(Rule::fastest);
  std::vector<std::string> inputs;
  std::string format = "table";

  void add_to(CLI::App& app, const std::vector<std::string>& formats = {"table", "json"});
  Options options() const; ///< those, and the rule

  /// A tensor for each --input.
  std::vector<c10::IValue> make_inputs(c10::Device device) const;
};

/// "20ms", "1.5s" or "300us", in microseconds. Throws InputError that names `option`.
double parse_time_us(const std::string& option, const std::string& text);

/// Of what a model raises: what it says comes last, after where in its source that was.
std::string last_line(std::string text);

/// An empty value of any option is an error that names it: call it when all options are there.
void refuse_empty_values(CLI::App& app);

/// Throws InputError.
c10::Device parse_device(const std::string& text);

/// Throws InputError, saying which there are, when `module` has no such method.
const c10::FunctionSchema& schema_of(const torch::jit::Module& module, const std::string& method);

/// Parses the command line and runs `command`: what is thrown becomes one line on standard error and an exit code. An
/// error that the model raises counts as one of its inputs.
int run_command(CLI::App& app, int argc, char** argv, const std::function<int()>& command);

} // namespace offload::tools
