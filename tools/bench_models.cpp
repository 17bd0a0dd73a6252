#include <tools/bench_models.h>

#include <ATen/core/grad_mode.h>
#include <c10/core/DeviceGuard.h>
#include <c10/cuda/CUDACachingAllocator.h>

#include <algorithm>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <ostream>

#include <offload/bytes.h>
#include <offload/graph/reference.h>
#include <offload/load/archive.h>
#include <offload/module.h>
#include <tools/calls.h>
#include <tools/compare.h>
#include <tools/numbers.h>

namespace offload::tools {

namespace {

constexpr std::uint64_t kShare = 10; // one part in so many

std::uint64_t weight_bytes(const Placement& placement) {
  std::uint64_t bytes = 0;
  for (const PlacedWeight& weight : placement.weights) {
    bytes += weight.bytes;
  }
  return bytes;
}

} // namespace

nlohmann::ordered_json blocks_json(const Blocks& blocks) {
  nlohmann::ordered_json json = nlohmann::ordered_json::array();
  for (const Block& block : blocks.blocks) {
    json.push_back({{"calls", block.call_us.size()},
                    {"window_us", block.window_us},
                    {"plain_us", median(block.plain_us)},
                    {"link_bytes_per_us", block.link_bytes_per_us},
                    {"host_copy_bytes_per_us", block.host_copy_bytes_per_us}});
  }
  return json;
}

std::vector<ExampleCall> example_calls_of(const std::string& path, const torch::jit::Module& module,
                                          c10::Device device) {
  CallArguments arguments;
  arguments.inputs_file = std::filesystem::path(path).replace_extension(".inputs.pt").string();
  try {
    return arguments.examples_of(arguments.make_calls(module, device));
  } catch (const InputError& error) {
    throw InputError("--model " + path + ": " + error.what());
  }
}

ModelResult measure_model(const std::string& path, const MeasureOptions& options) {
  const at::NoGradGuard no_grad;
  const c10::Device device = options.device;
  const c10::OptionalDeviceGuard guard(device);
  ModelResult result;
  result.name = std::filesystem::path(path).stem().string();
  torch::jit::Module archive = read_archive(path);
  const Call call = example_calls_of(path, archive, device).front().inputs;
  c10::IValue expected;
  std::unique_ptr<Reference> reference;
  Yardstick yardstick{device, {}, {}, options.link_bytes_per_us};
  {
    torch::jit::Module there = device.is_cuda() ? archive.deepcopy(device) : archive.deepcopy();
    reference = std::make_unique<Reference>(there, device);
    expected = reference->run("forward", call);
    yardstick.plain_us = time_calls(2, 10, device, [&] { reference->run("forward", call); });
  }
  Options with;
  with.device = device;
  with.example_calls = {{"forward", call, {}}};
  if (free_bytes(device) > std::filesystem::file_size(path) + 4_GiB) {
    yardstick.plain = [&] { reference->run("forward", call); };
  } else {
    reference.reset();
  }
  if (device.is_cuda()) {
    c10::cuda::CUDACachingAllocator::emptyCache();
  }
  Module model = wrap(std::move(archive), with);
  const Budget budget = model.placement().budget;
  result.weight_bytes = weight_bytes(model.placement());
  result.reserve_bytes = budget.reserve;
  result.minimum_bytes = budget.minimum;
  result.budget_bytes =
      std::max(budget.minimum,
               align_up(result.weight_bytes / kShare, device.is_cuda() ? 2_MiB : 512) + budget.fixed + budget.reserve);
  model.set_vram_budget(result.budget_bytes);
  const Placement placement = model.placement();
  result.planned_bytes = placement.predicted.streamed_bytes;
  result.predicted_us = placement.predicted.time_us;
  result.identical = true;
  for (int i = 0; i < 3; ++i) {
    result.identical = result.identical && first_difference(model.forward(call), expected).empty();
  }
  wait_until_idle(device);
  const Stats before = model.stats();
  result.blocks = measure_blocks([&] { model.forward(call); }, options.calls, result.planned_bytes > 0, yardstick);
  const Stats after = model.stats();
  result.identical = result.identical && first_difference(model.forward(call), expected).empty();
  result.used_bytes = (after.bytes_streamed - after.bytes_ahead) - (before.bytes_streamed - before.bytes_ahead);
  result.in_place_bytes = after.bytes_in_place - before.bytes_in_place;
  result.misses = after.misses - before.misses;
  result.peak_device_bytes = after.peak_device_bytes;
  return result;
}

void write_models(const std::vector<ModelResult>& models, std::ostream& out) {
  out << "\n## Models at a tenth of their size\n\nThe budget is a tenth of the weights, ring included, or the least "
         "that works, and what activations take. The limit is the\nlarger of the plain run on the device and the "
         "planned bytes over the link.\n\n"
      << "| model | weights | budget | of it activations | ours ms | waited ms | plain ms | limit ms | ours / limit | "
         "streamed a "
         "call | "
         "read in place a call | misses | check |\n|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---|\n";
  for (const ModelResult& model : models) {
    out << "| " << model.name << " | " << format_bytes(model.weight_bytes) << " | " << format_bytes(model.budget_bytes)
        << " | " << format_bytes(model.reserve_bytes) << " | " << number("%.3f", model.blocks.time_us() / 1e3) << " | "
        << number("%.3f", median(model.blocks.waited_us) / 1e3) << " | "
        << number("%.3f", median(model.blocks.plain_us()) / 1e3) << " | "
        << number("%.3f", model.blocks.limit_us(model.planned_bytes) / 1e3) << " | "
        << number("%.3f", model.blocks.ratio_to_limit(model.planned_bytes)) << " | "
        << format_bytes(model.planned_bytes) << " | "
        << format_bytes(model.in_place_bytes / std::max<std::size_t>(1, model.blocks.calls())) << " | " << model.misses
        << " | " << (model.right() ? "bits and bytes right" : "**wrong**") << " |\n";
  }
}

nlohmann::ordered_json models_json(const std::vector<ModelResult>& models) {
  nlohmann::ordered_json json = nlohmann::ordered_json::array();
  for (const ModelResult& model : models) {
    json.push_back({{"name", model.name},
                    {"weight_bytes", model.weight_bytes},
                    {"budget_bytes", model.budget_bytes},
                    {"minimum_bytes", model.minimum_bytes},
                    {"reserve_bytes", model.reserve_bytes},
                    {"planned_bytes_per_call", model.planned_bytes},
                    {"used_bytes", model.used_bytes},
                    {"in_place_bytes", model.in_place_bytes},
                    {"peak_device_bytes", model.peak_device_bytes},
                    {"misses", model.misses},
                    {"plain_us", model.blocks.plain_us()},
                    {"call_us", model.blocks.call_us()},
                    {"waited_us", model.blocks.waited_us},
                    {"blocks", blocks_json(model.blocks)},
                    {"predicted_us", model.predicted_us},
                    {"limit_us", model.blocks.limit_us(model.planned_bytes)},
                    {"ratio_to_limit", model.blocks.ratio_to_limit(model.planned_bytes)},
                    {"identical", model.identical}});
  }
  return json;
}

} // namespace offload::tools
