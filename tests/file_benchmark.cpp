// Times a stack from its archive, in a process of its own: the load with the first call, and the calls
// after it; or the reading of the archive alone, its weights left on the file, and torch::jit::load. Prints JSON, with
// a checksum of the output, which is the same for every call. tests/file_figures.py says what that is compared with.

#include <ATen/core/grad_mode.h>
#include <ATen/ops/linspace.h>
#include <torch/csrc/jit/serialization/import.h>
#include <zlib.h>

#include <algorithm>
#include <chrono>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>

#include <offload/bytes.h>
#include <offload/error.h>
#include <offload/graph/reference.h>
#include <offload/load/archive.h>
#include <offload/measure.h>
#include <offload/module.h>
#include <tools/cli.h>

/// By system calls of this process.
static std::uint64_t bytes_read() {
  std::ifstream counts("/proc/self/io");
  std::string name;
  std::uint64_t bytes = 0;
  counts >> name >> bytes;
  return bytes;
}

int main(int argc, char** argv) {
  CLI::App app{"Times a stack from its archive."};
  offload::tools::ModelArguments arguments;
  std::int64_t features = 4096;
  int calls = 3;
  bool plain = false;
  bool beside = false;
  bool reading = false;
  arguments.add_to(app);
  app.add_option("--features", features, "of the input, [1, FEATURES]")->capture_default_str();
  app.add_option("--calls", calls, "after the first")->capture_default_str();
  app.add_flag("--reading", reading, "of the archive alone: the best of twenty");
  app.add_flag("--plain", plain, "all in memory, as plain torch runs it");
  app.add_flag("--beside", beside, "and what plain torch takes: a call of it after each call, in the same process");
  return offload::tools::run_command(app, argc, argv, [&] {
    using Clock = std::chrono::steady_clock;
    const at::NoGradGuard no_grad;
    const offload::Options options = arguments.options();
    const c10::Device device = options.device.value_or(c10::kCPU);
    const at::Tensor input = at::linspace(-1, 1, features).sin().unsqueeze(0).to(device);
    std::optional<offload::Module> module;
    std::optional<offload::Reference> reference;
    const auto seconds = [](auto&& work) {
      const auto begin = Clock::now();
      work();
      return std::chrono::duration<double>(Clock::now() - begin).count();
    };
    std::optional<unsigned long> checksum;
    const auto look_at = [&](const c10::IValue& output) {
      const at::Tensor bytes = output.toTensor().contiguous().cpu();
      const auto crc = crc32_z(0, static_cast<const Bytef*>(bytes.const_data_ptr()), bytes.nbytes());
      if (checksum.value_or(crc) != crc) {
        throw offload::Error("two calls gave outputs that differ");
      }
      checksum = crc;
    };
    const auto plain_call = [&] { look_at(reference->run("forward", {input})); };
    const auto call = [&] { plain ? plain_call() : look_at(module->forward({input})); };
    nlohmann::ordered_json json;
    if (reading) {
      constexpr int kReadings = 20;
      double best = 1e9;
      const std::uint64_t before = bytes_read();
      for (int i = 0; i < kReadings; ++i) {
        best = std::min(best, seconds([&] {
                          plain ? torch::jit::load(arguments.model)
                                : offload::read_archive(arguments.model, offload::Weights::on_file);
                        }));
      }
      std::cout << nlohmann::ordered_json{{"reading_s", best}, {"bytes_read", (bytes_read() - before) / kReadings}}
                << std::endl;
      return offload::tools::kDone;
    }
    offload::machine_profile(device); // measured once on a machine, which is no part of a load
    const double load_s = seconds([&] {
      plain ? void(reference.emplace(offload::read_archive(arguments.model), device))
            : void(module = offload::load(arguments.model, options));
    });
    json["load_s"] = load_s;
    json["first_s"] = load_s + seconds(call);
    if (beside && !plain) {
      reference.emplace(offload::read_archive(arguments.model), device);
      plain_call();
    }
    for (int i = 0; i < calls; ++i) {
      json["calls_s"].push_back(seconds(call));
      if (beside) {
        json["plain_calls_s"].push_back(seconds(plain_call));
      }
    }
    json["checksum"] = *checksum;
    json["bytes_a_call"] = plain ? 0 : module->placement().predicted.streamed_bytes;
    std::cout << json << std::endl;
    return offload::tools::kDone;
  });
}
