// What libraries work in, on a GPU: it is a lane's, whichever thread calls, and has room in the smallest budget.

#include <ATen/ops/matmul.h>
#include <gtest/gtest.h>

#include <string>
#include <thread>
#include <vector>

#include <tools/compare.h>

#include "on_device.h"

namespace offload {
namespace {

torch::jit::Module convolutions() {
  torch::jit::Module module("Convolutions");
  module.register_parameter("a", at::randn({32, 8, 5}), false);
  module.register_parameter("b", at::randn({8, 32, 5}), false);
  module.define("def forward(self, x):\n  return torch.conv1d(torch.relu(torch.conv1d(x, self.a)), self.b)\n");
  return module;
}

void expect_the_same_from_threads(const torch::jit::Module& module, const at::Tensor& input) {
  at::matmul(at::randn({8, 8}).to(kCuda), at::randn({8, 8}).to(kCuda)); // this thread has a handle, with a workspace
  OwnSession ample = make_session(module, 1_GiB, 2);
  ample.run_method("forward", {input}, {});
  ample.run_method("forward", {input}, {});
  const std::uint64_t smallest = ample.placement().budget.minimum;

  OwnSession session = make_session(module, smallest, 2);
  const c10::IValue expected = session.run_method("forward", {input}, {});
  session.run_method("forward", {input}, {});
  const std::uint64_t repeated = session.stats().calls_repeated;
  std::vector<std::string> differences(4);
  std::vector<std::thread> threads;
  for (std::string& difference : differences) {
    threads.emplace_back([&] {
      try {
        for (int call = 0; call < 5; ++call) {
          difference += tools::first_difference(session.run_method("forward", {input}, {}), expected);
        }
      } catch (const std::exception& error) {
        difference = error.what();
      }
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  EXPECT_EQ(differences, std::vector<std::string>(4));
  EXPECT_EQ(session.placement().budget.minimum, smallest);
  EXPECT_EQ(session.stats().calls_repeated, repeated);
}

TEST(DeviceWorkspaces, ThreadsThatComeLaterTakeNoMoreThanTheFirst) {
  expect_the_same_from_threads(stack_of(4), at::randn({64, 1024}).to(kCuda));
}

TEST(DeviceWorkspaces, ThreadsOfAModelWithoutMatrixProductsTakeNone) {
  expect_the_same_from_threads(convolutions(), at::randn({1, 8, 4096}).to(kCuda));
}

TEST(DeviceWorkspaces, ACallWhoseWorkspaceComesLateFitsTheSmallestBudget) {
  torch::jit::Module module("Late");
  module.register_parameter("w", at::randn({1024, 1024}), false);
  module.define(R"(
def forward(self, x):
  s = x.repeat([1056, 1]).sum(0)
  y = torch.linear(x, self.w) + s
  return y.repeat([1056, 1]).sum(0) + s
)"); // a workspace of 32 MiB lies where 33 were, which are wanted again
  const at::Tensor input = at::randn({8, 1024}).to(kCuda);
  OwnSession ample = make_session(module, 1_GiB);
  const c10::IValue expected = ample.run_method("forward", {input}, {});
  ample.run_method("forward", {input}, {});
  OwnSession session = make_session(module, ample.placement().budget.minimum);
  for (int call = 0; call < 3; ++call) {
    EXPECT_EQ(tools::first_difference(session.run_method("forward", {input}, {}), expected), "");
  }
  EXPECT_LE(session.stats().calls_repeated, 1);
}

} // namespace
} // namespace offload
