// make_model: writes a TorchScript model with random weights, to try the
// library on.

#include <cstdint>
#include <cstdio>
#include <exception>
#include <filesystem>
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

/// One line, whatever the message: those of LibTorch carry a stack trace below
/// it.
int refuse(ExitCode code, const std::string& what) {
  std::cerr << "make_model: " << what.substr(0, what.find('\n')) << '\n';
  return code;
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
    command->add_option("--seed", seed, "of the weights");
    command->add_flag("--bias", bias, "linears have a bias");
    command->add_option("OUT.pt", out, "the file to write")->required();
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
      transformer_command->add_option("--size", size, "bytes of all weights, as in 1GiB, instead of dimensions");
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
      transformer = transformer_of_size(offload::parse_bytes(size), transformer);
    }
    const std::filesystem::path parent = std::filesystem::absolute(out).parent_path();
    if (std::filesystem::is_directory(out) || !std::filesystem::is_directory(parent)) {
      return refuse(kUsage, "'" + out + "' cannot be written: " +
                                (std::filesystem::is_directory(out) ? "it is a folder" : "its folder does not exist"));
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
