#include <tools/cli.h>

#include <c10/util/Exception.h>

#include <iostream>

#include <offload/bytes.h>
#include <offload/error.h>
#include <tools/inputs.h>

namespace offload::tools {

void ModelArguments::add_to(CLI::App& app) {
  app.add_option("MODEL", model, "TorchScript archive")->required();
  app.add_option("--vram", vram, "bytes that the model may use on the device, as in 8GiB; default: what is free");
  app.add_option("--host", host, "bytes of host memory for weights and staging buffers");
  app.add_option("--pinned", pinned, "bytes of it that may be page-locked");
  app.add_option("--device", device, "cuda:0, cpu; default: the first GPU where there is one");
  app.add_flag("--keep-devices", keep_devices, "leave constants that name another device in the graph as they are");
  app.add_option("--input", inputs, "a tensor, as in 'float32[1024,1024]' or 'int64[1,128]<30000'; once for each")
      ->take_all()
      ->allow_extra_args(false);
  app.add_option("--format", format, "table, json")->check(CLI::IsMember({"table", "json"}));
}

Options ModelArguments::options() const {
  Options options;
  const auto bytes = [](const std::string& text, const char* option) -> std::optional<std::uint64_t> {
    if (text.empty()) {
      return std::nullopt;
    }
    try {
      return parse_bytes(text);
    } catch (const InputError& error) {
      throw InputError(std::string(option) + ": " + error.what());
    }
  };
  options.vram_budget = bytes(vram, "--vram");
  options.host_budget = bytes(host, "--host");
  options.pinned_budget = bytes(pinned, "--pinned");
  options.rewrite_devices = !keep_devices;
  if (!device.empty()) {
    try {
      options.device = c10::Device(device);
    } catch (const std::exception&) {
      throw InputError("--device '" + device + "' is not a device: give cuda:0 or cpu");
    }
  }
  return options;
}

std::vector<c10::IValue> ModelArguments::make_inputs(c10::Device on) const {
  std::vector<c10::IValue> values;
  for (const std::string& input : inputs) {
    values.emplace_back(make_input(parse_input(input), values.size(), on));
  }
  return values;
}

namespace {

/// Errors go on one line; what torch adds about where in its sources they arose stays out.
int tell(const std::string& what, ExitCode code) {
  std::string line = what.substr(0, what.find("\nException raised from"));
  while (!line.empty() && line.back() == '\n') {
    line.pop_back();
  }
  std::replace(line.begin(), line.end(), '\n', ' ');
  std::cerr << "error: " << line << '\n';
  return code;
}

} // namespace

int run_command(CLI::App& app, int argc, char** argv, const std::function<int()>& command) {
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& success) {
    return app.exit(success);
  } catch (const CLI::ParseError& error) {
    return tell(error.what(), kBadUsage);
  }
  try {
    return command();
  } catch (const InputError& error) {
    return tell(error.what(), kBadUsage);
  } catch (const ArchiveError& error) {
    return tell(error.what(), kBadUsage);
  } catch (const BudgetError& error) {
    return tell(error.what(), kBadUsage);
  } catch (const c10::Error& error) {
    return tell(error.what_without_backtrace(), kFailed);
  } catch (const std::exception& error) {
    return tell(error.what(), kFailed);
  }
}

} // namespace offload::tools
