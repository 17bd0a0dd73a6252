#pragma once

#include <CLI/CLI.hpp>

#include <string>
#include <vector>

#include <offload/options.h>

namespace offload::tools {

/// The exit codes of every command.
enum ExitCode { kDone = 0, kWrongResult = 1, kBadUsage = 2, kFailed = 3 };

/// The options that plan and run share.
struct ModelArguments {
  std::string model;
  std::string vram;
  std::string host;
  std::string pinned;
  std::string device;
  bool keep_devices = false;
  std::vector<std::string> inputs;
  std::string format = "table";

  void add_to(CLI::App& app);
  Options options() const;

  /// A tensor for each --input.
  std::vector<c10::IValue> make_inputs(c10::Device device) const;
};

/// Parses the command line and runs `command`: what is thrown becomes one line on standard error and an exit code.
int run_command(CLI::App& app, int argc, char** argv, const std::function<int()>& command);

} // namespace offload::tools
