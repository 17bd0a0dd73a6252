#include <tools/cli.h>

#include <c10/util/Exception.h>
#include <dlfcn.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <charconv>
#include <chrono>
#include <cmath>
#include <cstring>
#include <iostream>
#include <iterator>

#include <offload/bytes.h>
#include <offload/core/printable.h>
#include <offload/error.h>
#include <tools/inputs.h>

namespace offload::tools {

namespace {

std::vector<std::string> names_of_rules() {
  std::vector<std::string> names;
  std::transform(kRules.begin(), kRules.end(), std::back_inserter(names), to_string);
  return names;
}

} // namespace

void DeviceArguments::add_to(CLI::App& app) {
  app.add_option("--vram", vram, "bytes that the model may use on the device, as in 8GiB; default: what is free");
  app.add_option("--host", host, "bytes of host memory for weights and staging buffers");
  app.add_option("--pinned", pinned, "bytes of it that may be page-locked");
  app.add_option("--device", device, "cuda:0, cpu; default: the first GPU where there is one");
  app.add_option("--library", libraries, "a shared library that defines operators of the model; once for each")
      ->take_all()
      ->allow_extra_args(false);
  app.add_flag("--copy-file", copy_file, "on the host, copy weights of the file at each use instead of mapping it");
  app.add_flag("--keep-devices", keep_devices, "leave constants that name another device in the graph as they are");
  app.add_flag("--gradients", gradients, "call methods that call torch.autograd.grad with gradients on");
}

void ModelArguments::add_to(CLI::App& app, const std::vector<std::string>& formats) {
  app.add_option("MODEL", model, "TorchScript archive")->required();
  DeviceArguments::add_to(app);
  app.add_option("--rule", rule,
                 "by what it is chosen which weights stay, to compare: fastest, larger-first, first-first, spread, "
                 "module-order")
      ->check(CLI::IsMember(names_of_rules()))
      ->capture_default_str();
  app.add_option("--input", inputs, "a tensor, as in 'float32[1024,1024]' or 'int64[1,128]<30000'; once for each")
      ->take_all()
      ->allow_extra_args(false);
  app.add_option("--format", format, CLI::detail::join(formats, ", "))->check(CLI::IsMember(formats));
}

namespace {

/// A bar that is there while it is needed: on a terminal, and once it is clear that somebody waits.
class ProgressBar {
 public:
  void operator()(std::uint64_t done, std::uint64_t total) {
    const auto percent =
        total == 0 ? 100 : static_cast<int>(100.0 * static_cast<double>(done) / static_cast<double>(total));
    if (percent == shown_ || std::chrono::steady_clock::now() - begin_ < std::chrono::milliseconds(500)) {
      return;
    }
    shown_ = percent;
    const auto full = static_cast<std::size_t>(percent / 4);
    std::cerr << "\rloading " << format_bytes(total) << " [" << std::string(full, '#') << std::string(25 - full, ' ')
              << "] " << percent << "%" << (done == total ? "\r\033[K" : "") << std::flush;
  }

 private:
  std::chrono::steady_clock::time_point begin_ = std::chrono::steady_clock::now();
  int shown_ = -1;
};

} // namespace

Options DeviceArguments::device_options() const {
  Options options;
  if (isatty(STDERR_FILENO) != 0) {
    options.progress = ProgressBar();
  }
  const auto bytes = [](const std::optional<std::string>& text, const char* option) -> std::optional<std::uint64_t> {
    if (!text) {
      return std::nullopt;
    }
    try {
      return parse_bytes(*text);
    } catch (const InputError& error) {
      throw InputError(std::string(option) + ": " + error.what());
    }
  };
  options.vram_budget = bytes(vram, "--vram");
  options.host_budget = bytes(host, "--host");
  options.pinned_budget = bytes(pinned, "--pinned");
  options.map_file = !copy_file;
  options.rewrite_devices = !keep_devices;
  options.gradients = gradients ? Gradients::callers : Gradients::off;
  if (device) {
    options.device = parse_device(*device);
    if (options.device->is_cpu() && options.device->has_index() && options.device->index() != 0) {
      throw InputError("--device '" + *device + "': there is one cpu; give cpu");
    }
  }
  return options;
}

Options ModelArguments::options() const {
  Options options = device_options();
  options.rule = *std::find_if(kRules.begin(), kRules.end(), [&](Rule each) { return rule == to_string(each); });
  return options;
}

std::vector<c10::IValue> ModelArguments::make_inputs(c10::Device on) const {
  std::vector<c10::IValue> values;
  for (const std::string& input : inputs) {
    try {
      values.emplace_back(make_input(parse_input(input), values.size(), on));
    } catch (const c10::Error&) {
      throw InputError("input '" + input + "': there is no memory for it");
    }
  }
  return values;
}

void DeviceArguments::load_libraries() const {
  for (const std::string& library : libraries) {
    const std::string path = library.find('/') == std::string::npos ? "./" + library : library; // not a search
    if (!dlopen(path.c_str(), RTLD_NOW | RTLD_GLOBAL)) {
      throw InputError("--library " + library + ": " + dlerror());
    }
  }
}

double parse_time_us(const std::string& option, const std::string& text) {
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  const std::string unit = text.substr(static_cast<std::size_t>(end - text.data()));
  const double us = unit == "us" ? 1 : unit == "ms" ? 1e3 : unit == "s" ? 1e6 : 0;
  if (error != std::errc() || us == 0 || !(value > 0) || !std::isfinite(value * us)) {
    throw InputError(option + " '" + text + "' is not a time: give it as in 20ms, 300us or 1.5s");
  }
  return value * us;
}

c10::Device parse_device(const std::string& text) {
  try {
    const c10::Device device(text);
    const std::size_t colon = text.find(':'); // numbers that do not fit are wrapped around by Device
    if (colon == std::string::npos || text.substr(colon + 1) == std::to_string(device.index())) {
      return device;
    }
  } catch (const std::exception&) { // as below
  }
  throw InputError("--device '" + text + "' is not a device: give cuda:0 or cpu");
}

const c10::FunctionSchema& schema_of(const torch::jit::Module& module, const std::string& method) {
  const auto found = module.find_method(method);
  if (!found) {
    std::string names;
    for (const auto& known : module.get_methods()) {
      names += (names.empty() ? "" : ", ") + known.name();
    }
    throw InputError("--method '" + method + "': the model has no such method; it has " +
                     (names.empty() ? "none" : names));
  }
  return found->function().getSchema();
}

namespace {

/// Errors go on one line; what torch adds about where in its sources they arose stays out.
int report(const std::string& what, ExitCode code) {
  std::string line = what.substr(0, what.find("\nException raised from"));
  while (!line.empty() && line.back() == '\n') {
    line.pop_back();
  }
  std::replace(line.begin(), line.end(), '\n', ' ');
  std::cerr << "error: " << printable(line) << '\n';
  return code;
}

/// The options of the library as those of a command.
std::string with_options_of_commands(std::string text) {
  for (const auto& [field, option] :
       {std::pair("vram_budget", "--vram"), std::pair("host_budget", "--host"), std::pair("pinned_budget", "--pinned"),
        std::pair("example_calls", "--inputs"),
        std::pair("Options::gradients = Gradients::callers and call it with gradients on", "--gradients")}) {
    for (std::size_t at = text.find(field); at != std::string::npos; at = text.find(field, at)) {
      text.replace(at, std::strlen(field), option);
    }
  }
  return text;
}

int report_torch_error(const std::string& what) {
  if (what.find("in the TorchScript interpreter") == std::string::npos) {
    return report(what, kFailed);
  }
  const bool device = what.find("CUDA error") != std::string::npos;
  return report((device ? "" : "the model does not take these inputs: ") + last_line(what),
                device ? kFailed : kBadUsage);
}

} // namespace

std::string last_line(std::string text) {
  text = text.substr(0, text.find("\nException raised from"));
  while (!text.empty() && std::isspace(static_cast<unsigned char>(text.back()))) {
    text.pop_back();
  }
  return text.substr(text.rfind('\n') + 1);
}

void refuse_empty_values(CLI::App& app) {
  for (CLI::Option* option : app.get_options()) {
    if (option->get_expected_max() > 0 && option->get_items_expected_max() > 0) {
      option->check([](const std::string& text) {
        return text.empty() ? std::string("the value is empty: leave the option out, or give one") : std::string();
      });
    }
  }
}

int run_command(CLI::App& app, int argc, char** argv, const std::function<int()>& command) {
  refuse_empty_values(app);
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& success) {
    return app.exit(success);
  } catch (const CLI::ParseError& error) {
    return report(error.what(), kBadUsage);
  }
  try {
    const int status = command();
    if (!std::cout.flush()) {
      return report("standard output can not be written", kFailed);
    }
    return status;
  } catch (const InputError& error) {
    return report(with_options_of_commands(error.what()), kBadUsage);
  } catch (const ArchiveError& error) {
    return report(error.what(), kBadUsage);
  } catch (const BudgetError& error) {
    return report(with_options_of_commands(error.what()), kBadUsage);
  } catch (const c10::Error& error) { // of the interpreter, too, since LibTorch 2.15
    return report_torch_error(error.what_without_backtrace());
  } catch (const std::exception& error) {
    return report_torch_error(error.what());
  }
}

} // namespace offload::tools
