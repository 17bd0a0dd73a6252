#pragma once

// What tests of offload::Module share. They are linked twice: for the host, and for the first GPU.

#include <ATen/ops/randn.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <string>
#include <vector>

#include <offload/graph/reference.h>
#include <offload/module.h>
#include <tools/compare.h>

namespace offload::test {

const char* device_name(); // on_host.cpp or on_gpu.cpp
inline const c10::Device kDevice(device_name());

constexpr std::int64_t kWidth = 512; // a weight of 1 MiB in fp32
constexpr std::uint64_t kWeightBytes = kWidth * kWidth * 4;

/// Room for so many weights before a call has been measured: on a GPU beside the default reserve of each lane.
inline std::uint64_t budget(std::uint64_t weights, int lanes = 1) {
  constexpr std::uint64_t kGranularity = 6_MiB;
  const auto each = static_cast<std::uint64_t>(lanes);
  return weights * kWeightBytes + (kDevice.is_cuda() ? each * 64_MiB + kGranularity : 4096);
}

/// What a smallest budget counts for activations before a call has shown what they take: no reason to refuse.
inline std::uint64_t assumed() { return kDevice.is_cuda() ? 64_MiB : 0; }

/// `count` weights w0, w1, ... and the methods of `source`.
inline torch::jit::Module make(int count, const std::string& source, at::ScalarType dtype = at::kFloat,
                               const std::function<void(torch::jit::Module&)>& add_attributes = {}) {
  torch::jit::Module module("Model");
  for (int i = 0; i < count; ++i) {
    module.register_parameter("w" + std::to_string(i), at::randn({kWidth, kWidth}).mul(1.0 / 23).to(dtype), false);
  }
  module.register_parameter("little", at::randn({kWidth}).to(dtype), false);
  module.register_attribute("training", c10::BoolType::get(), false);
  if (add_attributes) {
    add_attributes(module);
  }
  module.define(source);
  return module;
}

inline std::string chain(int count) {
  std::string source = "def forward(self, x):\n";
  for (int i = 0; i < count; ++i) {
    source += "  x = x + torch.linear(x, self.w" + std::to_string(i) + ", self.little)\n";
  }
  return source + "  return x\n";
}

inline at::Tensor rows(std::int64_t count = 3, at::ScalarType dtype = at::kFloat) {
  return at::randn({count, kWidth}).to(dtype).to(kDevice);
}

inline Options options_for(std::uint64_t vram) {
  Options options;
  options.device = kDevice;
  options.vram_budget = vram;
  options.concurrency = 1;
  return options;
}

/// Room for so many weights once a call has been measured: what a GPU reserves until then would hold them all.
inline void leave_room(Module& module, std::uint64_t weights) {
  module.set_vram_budget(module.placement().budget.minimum + (std::max<std::uint64_t>(weights, 1) - 1) * kWeightBytes);
}

/// The same module twice: under a budget, and as the reference wholly on the device.
struct Pair {
  Pair(const torch::jit::Module& module, const Options& options)
      : reference(module.deepcopy(), kDevice),
        offloaded(wrap(module.deepcopy(), options)),
        first_budget(*options.vram_budget),
        weights((std::max(first_budget, smallest(options)) - smallest(options)) / kWeightBytes) {}

  static std::uint64_t smallest(const Options& options) { return budget(0, options.concurrency.value_or(1)); }

  void expect_same(const std::vector<c10::IValue>& inputs, const Kwargs& kwargs = {},
                   const std::string& method = "forward") {
    const c10::IValue expected = reference.run(method, inputs, kwargs);
    const c10::IValue actual = offloaded.run_method(method, inputs, kwargs);
    EXPECT_EQ(tools::first_difference(actual, expected), "");
    if (kDevice.is_cuda() && offloaded.placement().budget.vram == first_budget) {
      leave_room(offloaded, weights);
    }
  }

  Reference reference;
  Module offloaded;
  std::uint64_t first_budget;
  std::uint64_t weights; ///< that the first budget has room for
};

} // namespace offload::test
