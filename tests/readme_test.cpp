// The program of the README, as it stands there; tests/CMakeLists.txt takes it out of the page.

#include <ATen/ops/randn.h>
#include <gtest/gtest.h>
#include <torch/csrc/jit/api/module.h>

#include <cstdio>

#include "readme_snippet.h"

TEST(Readme, TheProgramRuns) {
  torch::jit::Module module("Model");
  module.register_parameter("w", at::randn({256, 256}), false);
  module.define("def forward(self, x):\n  return torch.linear(x, self.w)\n");
  const std::string path = testing::TempDir() + "readme_model.pt";
  module.save(path);
  const c10::Device device = offload::load(path).device();
  const at::Tensor x = at::randn({2, 256}).to(device);
  module.to(device);
  EXPECT_TRUE(answer(path, x).equal(module.forward({x}).toTensor()));
  std::remove(path.c_str());
}
