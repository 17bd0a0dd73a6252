#pragma once

#include <ATen/ops/randn.h>

#include <cstdint>
#include <optional>
#include <string>

#include <offload/bytes.h>
#include <offload/runtime/own_session.h>

namespace offload {

inline const c10::Device kCuda(c10::kCUDA, 0);

inline OwnSession make_session(const torch::jit::Module& module, std::uint64_t vram, int lanes = 1) {
  Options options;
  options.device = kCuda;
  options.vram_budget = vram;
  options.concurrency = lanes;
  return {module.deepcopy(), options, std::nullopt, OwnSession::Purpose::run, Owner::shared};
}

inline torch::jit::Module stack_of(int layers) {
  torch::jit::Module module("Stack");
  std::string source = "def forward(self, x):\n";
  for (int i = 0; i < layers; ++i) {
    const std::string name = "w" + std::to_string(i);
    module.register_parameter(name, at::randn({1024, 1024}).mul(1.0 / 32), false);
    source += "  x = x + torch.linear(x, self." + name + ")\n";
  }
  module.define(source + "  return x\n");
  return module;
}

} // namespace offload
