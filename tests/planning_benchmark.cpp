// What stands between an archive and its plan, for a stack of 5000 layers: 10 000 nodes of arithmetic, 5000 weights.

#include <benchmark/benchmark.h>
#include <torch/csrc/jit/serialization/import.h>

#include <sstream>

#include <models/stack.h>
#include <offload/graph/make_program.h>
#include <offload/plan/planner.h>
#include <tests/weight_tables.h>

namespace offload {
namespace {

torch::jit::Module stack() {
  models::StackOptions options;
  options.layers = 5000;
  options.features = 64; // 16 KiB a weight: the least that is planned
  return models::residual_stack(options);
}

void import_archive(benchmark::State& state) {
  std::stringstream archive;
  stack().save(archive);
  while (state.KeepRunning()) {
    archive.seekg(0);
    benchmark::DoNotOptimize(torch::jit::load(archive));
  }
}

void lower_module(benchmark::State& state) {
  const torch::jit::Module module = stack();
  while (state.KeepRunning()) {
    benchmark::DoNotOptimize(make_program(module, c10::kCPU));
  }
}

/// An eighth of the weights: most of them stream.
void plan_placement(benchmark::State& state) {
  const Program program = make_program(stack(), c10::kCPU);
  MachineProfile machine;
  machine.link_bytes_per_us = 55e3;
  machine.copy_overhead_us = 2;
  machine.host_copy_bytes_per_us = 5e4;
  machine.file_bytes_per_us = 2e3;
  machine.memory_bytes_per_us = 3e6;
  machine.fp64_flops_per_us = machine.fp32_flops_per_us = machine.half_flops_per_us = 5e7;
  machine.node_overhead_us = 5;
  Pass pass;
  std::uint64_t total = 0;
  std::vector<std::uint64_t> bytes;
  for (const Weight& weight : program.weights.weights) {
    bytes.push_back(weight.bytes());
    total += weight.bytes();
  }
  pass.weights = test::shared_table(bytes);
  for (const LoweredStep& step : program.methods.at("forward").steps) {
    pass.steps.push_back({step.weights, 1});
  }
  while (state.KeepRunning()) {
    benchmark::DoNotOptimize(plan(pass, total / 8, machine));
  }
}

BENCHMARK(import_archive)->Unit(benchmark::kMillisecond);
BENCHMARK(lower_module)->Unit(benchmark::kMillisecond);
BENCHMARK(plan_placement)->Unit(benchmark::kMillisecond);

} // namespace
} // namespace offload

BENCHMARK_MAIN();
