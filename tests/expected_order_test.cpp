#include <ATen/ops/randn.h>
#include <gtest/gtest.h>
#include <torch/csrc/jit/api/module.h>

#include <algorithm>
#include <string>

#include <offload/graph/make_program.h>

namespace offload {
namespace {

/// The weights `a` and `b` in the order in which a call is expected to lease them.
std::string order_of(const std::string& source) {
  torch::jit::Module module("Model");
  for (const char* name : {"a", "b"}) {
    module.register_parameter(name, at::randn({128, 128}), false);
  }
  module.define(source);
  const Program program = make_program(module, c10::kCPU);
  std::string order;
  for (const LoweredStep* step : expected_order(program.methods.at("forward").steps)) {
    order += program.weights.weights[step->weights.front()].name;
  }
  return order;
}

TEST(ExpectedOrder, StepsOfALoopTakeTurns) {
  EXPECT_EQ(order_of(R"(
def forward(self, x):
  x = torch.linear(x, self.b)
  for i in range(3):
    x = torch.linear(torch.linear(x, self.a), self.b)
  return torch.linear(x, self.a)
)"),
            "babababa");
  EXPECT_EQ(order_of(R"(
def forward(self, x):
  for i in range(2):
    for j in range(3):
      x = torch.linear(torch.linear(x, self.a), self.b)
    for j in range(2):
      x = torch.linear(x, self.a)
    x = torch.linear(x, self.b)
  for i in range(2):
    x = torch.linear(x, self.b)
  return x
)"),
            "abababaababababaabbb");
}

TEST(ExpectedOrder, HasNoStepMoreThanAThousandTimes) {
  const std::string many = order_of(R"(
def forward(self, x):
  for i in range(900000):
    for j in range(900000):
      x = torch.linear(x, self.a)
    x = torch.linear(x, self.b)
  return x
)");
  EXPECT_EQ(std::count(many.begin(), many.end(), 'a'), 1000);
  EXPECT_EQ(std::count(many.begin(), many.end(), 'b'), 1000);
}

} // namespace
} // namespace offload
