// make_model: writes a TorchScript model with random weights, to try the library on.

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstdint>
#include <cstring>
#include <exception>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <map>
#include <stdexcept>
#include <string>
#include <system_error>
#include <tuple>
#include <utility>

#include <CLI/CLI.hpp>

#include <offload/bytes.h>
#include <offload/error.h>

#include "models/parameters.h"
#include "models/stack.h"
#include "models/transformer.h"

namespace {

using namespace offload::models;

enum ExitCode { kDone = 0, kUsage = 2, kFailed = 3 };

const std::map<std::string, at::ScalarType> kDtypes = {
    {"float64", at::kDouble}, {"float32", at::kFloat}, {"float16", at::kHalf}, {"bfloat16", at::kBFloat16}};
const std::map<std::string, Norm> kNorms = {{"rms", Norm::rms}, {"layer", Norm::layer}};
const std::map<std::string, Mlp> kMlps = {{"swiglu", Mlp::swiglu}, {"gelu", Mlp::gelu}};

// The bytes of a weight still fit 64 bits; a layer costs a line of source.
const CLI::Range kChannels(std::int64_t{1}, std::int64_t{1} << 20);
const CLI::Range kLayers(std::int64_t{1}, std::int64_t{1} << 14);

/// One line, whatever the message: those of LibTorch carry a stack trace below it.
int refuse(ExitCode code, const std::string& what) {
  std::string line = what.substr(0, what.find("\nException raised from"));
  std::replace(line.begin(), line.end(), '\n', ' ');
  std::cerr << "make_model: " << line << '\n';
  return code;
}

const auto kRefuseEmpty = [](const std::string& text) {
  return text.empty() ? std::string("the value is empty: leave the option out, or give one") : std::string();
};

/// Why `out` can not be written; empty when it can be.
std::string find_obstacle(const std::filesystem::path& out) {
  namespace fs = std::filesystem;
  std::error_code error;
  const fs::file_status status = fs::status(out, error);
  if (fs::is_directory(status)) {
    return "it is a folder";
  }
  if (fs::exists(status) && !fs::is_regular_file(status)) {
    return "it is not a regular file";
  }
  if (!fs::is_directory(fs::absolute(out, error).parent_path(), error)) {
    return "its folder does not exist";
  }
  const fs::path probe = out.string() + ".partial";
  if (!std::ofstream(probe)) {
    return std::strerror(errno);
  }
  fs::remove(probe, error);
  return "";
}

/// Of `elements` numbers, and again as much while they are written.
void check_memory(double elements, at::ScalarType dtype) {
  const double bytes = 2 * elements * static_cast<double>(c10::elementSize(dtype));
  const double there = static_cast<double>(sysconf(_SC_PHYS_PAGES)) * static_cast<double>(sysconf(_SC_PAGESIZE));
  if (bytes > there) {
    throw std::invalid_argument("a model of " + std::to_string(static_cast<std::uint64_t>(bytes / 2 / (1 << 20))) +
                                " MiB finds no room in the memory of this host, twice that size");
  }
}

template <typename T>
CLI::Option* add_choice(CLI::App* app, const std::string& name, T& value, const std::map<std::string, T>& choices,
                        const std::string& description) {
  std::string names;
  for (const auto& [choice, unused] : choices) {
    names += (names.empty() ? "" : ", ") + choice;
  }
  return app->add_option_function<std::string>(
      name,
      [&value, &choices, name, names](const std::string& text) {
        const auto found = choices.find(text);
        if (found == choices.end()) {
          throw CLI::ValidationError(name, "'" + text + "' is none of " + names);
        }
        value = found->second;
      },
      description + ": " + names);
}

/// Writes beside `path` first, so that what stands there is whole or as it was.
void save(const torch::jit::Module& module, const std::filesystem::path& path) {
  std::filesystem::path partial = path;
  partial += ".partial";
  try {
    module.save(partial.string());
    std::filesystem::rename(partial, path);
  } catch (...) {
    std::error_code ignored;
    std::filesystem::remove(partial, ignored);
    throw;
  }
}

} // namespace

int main(int argc, char** argv) {
  StackOptions stack;
  TransformerOptions transformer;
  std::string size;
  std::string out;

  CLI::App app("Writes a TorchScript model with random weights.", "make_model");
  app.require_subcommand(1);
  const auto add_common = [&out](CLI::App* command, at::ScalarType& dtype, std::uint64_t& seed, bool& bias) {
    add_choice(command, "--dtype", dtype, kDtypes, "of weights and activations");
    command->add_option_function<std::string>(
        "--seed",
        [&seed](const std::string& text) {
          const auto [rest, error] = std::from_chars(text.data(), text.data() + text.size(), seed);
          if (error != std::errc() || rest != text.data() + text.size()) {
            throw CLI::ValidationError("--seed", "'" + text + "' is not a number from 0 to 18446744073709551615");
          }
        },
        "of the weights");
    command->add_flag("--bias", bias, "linears have a bias");
    command->add_option("OUT.pt", out, "the file to write")->required()->check(kRefuseEmpty);
  };

  CLI::App* stack_command = app.add_subcommand("stack", "layers of x = x + linear(x), with square weights");
  stack_command->add_option("--layers", stack.layers, "number of layers")->check(kLayers)->capture_default_str();
  stack_command->add_option("--features", stack.features, "rows and columns of a weight")
      ->check(kChannels)
      ->capture_default_str();
  add_common(stack_command, stack.dtype, stack.seed, stack.bias);

  CLI::App* transformer_command =
      app.add_subcommand("transformer", "a decoder-only transformer: int64[batch,sequence] to logits");
  CLI::Option* size_option =
      transformer_command->add_option("--size", size, "bytes of all weights, as in 1GiB, instead of dimensions")
          ->check(kRefuseEmpty);
  transformer_command->add_option("--layers", transformer.layers, "number of blocks")
      ->check(kLayers)
      ->excludes(size_option);
  for (const auto& [name, value, description] :
       {std::tuple("--width", &transformer.width, "channels between the blocks"),
        std::tuple("--heads", &transformer.heads, "attention heads"),
        std::tuple("--hidden", &transformer.hidden, "channels inside an MLP (default: by width)")}) {
    transformer_command->add_option(name, *value, description)->check(kChannels)->excludes(size_option);
  }
  transformer_command->add_option("--vocab", transformer.vocab, "number of tokens")->check(kChannels);
  add_choice(transformer_command, "--norm", transformer.norm, kNorms, "normalisation");
  add_choice(transformer_command, "--mlp", transformer.mlp, kMlps, "of a block");
  transformer_command->add_flag("--tied", transformer.tied, "embedding and head are one weight");
  add_common(transformer_command, transformer.dtype, transformer.seed, transformer.bias);

  try {
    app.parse(argc, argv);
    if (!size.empty()) {
      const std::uint64_t bytes = offload::parse_bytes(size);
      check_memory(static_cast<double>(bytes) / static_cast<double>(c10::elementSize(transformer.dtype)),
                   transformer.dtype);
      transformer = transformer_of_size(bytes, transformer);
    }
    if (const std::string obstacle = find_obstacle(out); !obstacle.empty()) {
      return refuse(kUsage, "'" + out + "' cannot be written: " + obstacle);
    }
    if (stack_command->parsed()) {
      const auto features = static_cast<double>(stack.features);
      check_memory(static_cast<double>(stack.layers) * features * features, stack.dtype);
    } else {
      check_memory(static_cast<double>(transformer_bytes(transformer)) /
                       static_cast<double>(c10::elementSize(transformer.dtype)),
                   transformer.dtype);
    }
    const torch::jit::Module module =
        stack_command->parsed() ? residual_stack(stack) : offload::models::transformer(transformer);
    try {
      save(module, out);
    } catch (const std::exception& error) {
      return refuse(kFailed, "'" + out + "' was not written: " + error.what());
    }
    std::cout << out << ": " << offload::format_bytes(parameter_bytes(module)) << " of weights\n";
    return kDone;
  } catch (const CLI::ParseError& error) {
    if (argc > 1 && argv[1][0] != '-' && app.get_subcommands().empty()) {
      return refuse(kUsage, "'" + std::string(argv[1]) + "' is neither stack nor transformer");
    }
    return error.get_exit_code() == 0 ? app.exit(error) : refuse(kUsage, error.what());
  } catch (const offload::InputError& error) {
    return refuse(kUsage, "--size: " + std::string(error.what()));
  } catch (const std::invalid_argument& error) {
    return refuse(kUsage, error.what());
  } catch (const std::exception& error) {
    return refuse(kFailed, error.what());
  }
}
