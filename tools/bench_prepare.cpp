#include <tools/bench_prepare.h>

#include <ATen/ops/add.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/randn.h>
#include <c10/cuda/CUDACachingAllocator.h>

#include <algorithm>
#include <utility>

#include <offload/bytes.h>
#include <offload/device/memory.h>

#include "models/stack.h"

namespace offload::tools {

namespace {

models::StackOptions stack_options(const Case& stack, std::int64_t layers) {
  models::StackOptions options;
  options.layers = layers;
  options.features = stack.features;
  options.dtype = stack.dtype == "bfloat16" ? at::kBFloat16 : at::kFloat;
  return options;
}

/// What a call takes on the device beside the weights: asked of a few layers of the stack, since it is the same for
/// many.
std::uint64_t activation_bytes(const Case& stack, const Options& options) {
  Options few = options;
  few.vram_budget.reset();
  few.pinned_budget.reset();
  return wrap(models::residual_stack(stack_options(stack, std::min<std::int64_t>(4, stack.layers))), few)
      .placement()
      .budget.reserve;
}

/// The record's way: what is not there is brought by a copy that the host waits for, used, and dropped.
at::Tensor load_and_unload(const std::vector<at::Tensor>& host, const std::vector<at::Tensor>& there,
                           std::size_t on_gpu, at::Tensor x) {
  for (std::size_t i = 0; i < host.size(); ++i) {
    x = at::add(x, at::linear(x, i < on_gpu ? there[i] : host[i].to(x.device())));
  }
  return x;
}

std::vector<at::Tensor> weights_of(const torch::jit::Module& module) {
  std::vector<at::Tensor> weights;
  for (const at::Tensor& weight : module.parameters()) {
    weights.push_back(weight);
  }
  return weights;
}

} // namespace

RowResult row_of(const Case& stack, std::int64_t on_gpu, std::uint64_t ring) {
  RowResult row;
  row.layers_on_gpu = on_gpu;
  row.share_bytes = static_cast<std::uint64_t>(on_gpu) * stack.layer_bytes();
  row.spare_bytes = std::min(ring, stack.weight_bytes() - row.share_bytes);
  return row;
}

Yardstick Prepared::yardstick(const MeasureOptions& with, bool staged) const {
  Yardstick yardstick{with.device, {}, plain_us, with.link_bytes_per_us, staged};
  if (reference) {
    yardstick.plain = [this] { reference->run("forward", {input}); };
  }
  return yardstick;
}

Module Prepared::load(const RowResult& row) {
  // Until activations have been measured the library reserves 64 MiB on a GPU.
  const std::uint64_t reserve = options.device->is_cuda() ? std::max(activations, 64_MiB) : activations;
  options.vram_budget = align_up(row.share_bytes + row.spare_bytes, kDeviceGranularity) + reserve;
  return wrap(std::move(host), options);
}

Prepared prepare(const Case& stack, const MeasureOptions& options, bool against) {
  const c10::Device device = options.device;
  const int plain_calls = device.is_cuda() ? 10 : 5;
  Prepared prepared;
  options.report(stack, "making the model");
  prepared.host = models::residual_stack(stack_options(stack, stack.layers));
  const std::vector<at::Tensor> host_weights = weights_of(prepared.host);
  const at::Tensor host_input =
      at::randn({stack.input_rows, stack.features}, at::TensorOptions()).to(host_weights.front().scalar_type());
  prepared.input = host_input.to(device);
  prepared.ring = options.ring_bytes.value_or(default_ring_bytes(stack));
  {
    options.report(stack, device.is_cuda() ? "plain GPU" : "plain host");
    torch::jit::Module there = device.is_cuda() ? prepared.host.deepcopy(device) : prepared.host;
    auto reference = std::make_unique<Reference>(there, device);
    prepared.expected = reference->run("forward", {prepared.input}).toTensor();
    prepared.plain_us = time_calls(2, plain_calls, device, [&] { reference->run("forward", {prepared.input}); });
    if (against && device.is_cuda() && options.against_gpu) {
      // Its first calls profile and compile.
      prepared.fused_us = time_calls(3, plain_calls, device, [&] { there.forward({prepared.input}); });
    }
    if (against && device.is_cuda() && options.against_auto) {
      options.report(stack, "synchronous load and unload");
      const std::vector<at::Tensor> weights = weights_of(there);
      for (const std::int64_t on_gpu : stack.layers_on_gpu) {
        const auto resident = static_cast<std::size_t>(on_gpu);
        prepared.auto_us.push_back(
            time_calls(1, 1, device, [&] { load_and_unload(host_weights, weights, resident, prepared.input); }));
      }
    }
    if (device.is_cuda() && free_bytes(device) > stack.weight_bytes() + 4_GiB) {
      prepared.reference = std::move(reference);
    }
  }
  if (against && device.is_cuda() && options.against_cpu) {
    options.report(stack, "plain CPU");
    Reference reference(prepared.host, c10::Device(c10::kCPU));
    prepared.cpu_us = time_calls(0, 1, c10::Device(c10::kCPU), [&] { reference.run("forward", {host_input}); });
  }
  options.report(stack, "measuring activations");
  prepared.options.device = device;
  prepared.options.example_calls = {{"forward", {prepared.input}, {}}};
  prepared.activations = activation_bytes(stack, prepared.options);
  wait_until_idle(device);
  if (device.is_cuda()) {
    c10::cuda::CUDACachingAllocator::emptyCache(); // what the plain run held is there for ours
  }
  return prepared;
}

} // namespace offload::tools
