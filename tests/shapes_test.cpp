// Calls that are told from sizes, beside the same calls as they run.

#include <ATen/ops/arange.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include <offload/error.h>
#include <offload/graph/make_program.h>
#include <offload/graph/shapes.h>
#include <offload/tensor/values.h>

#include "modules.h"

namespace offload::test {
namespace {

ShapedCall trace(const torch::jit::Module& module, std::vector<c10::IValue> arguments) {
  const Program program = make_program(module, c10::kCPU, DeviceConstants::rewrite, Gradients::off);
  std::vector<c10::IValue> stack = {program.holders.front()};
  stack.insert(stack.end(), arguments.begin(), arguments.end());
  if (program.methods.at("forward").takes_constants) {
    stack.push_back(program.holders.back());
  }
  return trace_shapes(program, "forward", std::move(stack), c10::kCPU);
}

/// Sizes and types of all tensors below a value.
std::vector<std::string> shapes(const c10::IValue& value) {
  std::vector<std::string> all;
  visit_tensors("", value, [&](const std::string& name, const at::Tensor& tensor) {
    all.push_back(name + ": " + std::string(tensor.dtype().name()) + c10::str(tensor.sizes()));
  });
  return all;
}

std::string refusal(const torch::jit::Module& module, std::vector<c10::IValue> arguments) {
  try {
    trace(module, std::move(arguments));
  } catch (const InputError& error) {
    return error.what();
  }
  return "";
}

TEST(Shapes, TellStepsWorkAndMemoryOfAChain) {
  constexpr std::int64_t kRows = 1000;
  const ShapedCall call = trace(make(4, chain(4)), {rows(kRows)});
  ASSERT_EQ(call.steps.size(), 4U);
  for (const LeasedStep& step : call.steps) {
    EXPECT_EQ(step.weights.size(), 1U);
    EXPECT_EQ(step.flops, 2. * kRows * kWidth * kWidth);
  }
  EXPECT_EQ(shapes(call.output), shapes(rows(kRows)));
  EXPECT_TRUE(call.output.toTensor().is_meta());
  constexpr std::uint64_t kActivation = kRows * kWidth * 4;
  EXPECT_EQ(call.peak_bytes, 3 * kActivation) << "x, its product, and their sum";
}

/// Between the products there are a view, dropout that does nothing, and an addition; after them, an operator for which
/// a weight is leased.
TEST(Shapes, AddWhatOtherOperatorsDoToTheStepBeforeThem) {
  constexpr std::int64_t kRows = 100;
  constexpr double kActivation = 4. * kRows * kWidth;
  const ShapedCall call = trace(make(3, R"(
def forward(self, x):
  y = torch.linear(torch.relu(x), self.w0)
  y = torch.dropout(y.view(-1, y.size(1)), 0.5, False) + x
  y = torch.linear(y, self.w1)
  return torch.mul(torch.cat([y, self.w2]), 2)
)"),
                                {rows(kRows)});
  ASSERT_EQ(call.steps.size(), 3U);
  EXPECT_EQ(call.steps[0].rows, kRows);
  EXPECT_EQ(call.steps[0].bytes, 2 * kActivation);
  EXPECT_EQ(call.steps[0].others.launches, 2) << "what comes before the first step, and the addition";
  EXPECT_EQ(call.steps[0].others.bytes, 5 * kActivation);
  EXPECT_EQ(call.steps[1].others.launches, 0);
  EXPECT_EQ(call.steps[2].flops, 0);
  EXPECT_EQ(call.steps[2].others.launches, 1) << "one of two is the step itself";
  constexpr double kWeight = 4. * kWidth * kWidth;
  EXPECT_EQ(call.steps[2].others.bytes, (2 * kActivation + kWeight) + 2 * (kActivation + kWeight))
      << "the weight is read with its step";
}

/// What operators make of `x` [2, 8, 16, 16], integers `i` [2, 5] below 8, and a mask `m` [2, 8].
TEST(Shapes, AreThoseOfARun) {
  const char* const expressions[] = {
      "torch.relu(x), x.abs(), torch.sigmoid(x), torch.gelu(x), torch.silu(x)",
      "torch.conv2d(x, k, None, [2, 1], [1, 0], [1, 2], 1)",
      "torch.conv2d(x[0], k), torch.conv2d(x, k, None, [1, 1], \"same\")",
      "torch.conv_transpose2d(x, k.transpose(0, 1), None, [2, 2], [1, 1], [1, 1])",
      "torch.conv1d(x[:, :, 0], k[:, :, 0], None, 1, 1)",
      "torch.max_pool2d(x, [2, 2]), torch.avg_pool2d(x, [3, 3]), torch.adaptive_avg_pool2d(x, [3, 5])",
      "torch.layer_norm(x, [16]), torch.group_norm(x, 4), torch.instance_norm(x, None, None, None, None, True, 0.1, "
      "1e-5, False)",
      "torch.batch_norm(x, None, None, x.mean([0, 2, 3]), x.var([0, 2, 3]), False, 0.1, 1e-5, False)",
      "torch.embedding(x[0, 0], i), torch.index_select(x, 1, i[0]), x[:, i[0]], x[m], torch.gather(x, 1, "
      "x.long().abs() % 8)",
      "torch.where(x > 0, x, 0), torch.where(m, 1.5, 2.5), x.masked_fill(m[:, :, None, None], 0.0)",
      "torch.scaled_dot_product_attention(x, x[:, :, :7], x[:, :, :7]), torch.softmax(x, -1), torch.cumsum(x, 1)",
      "torch.topk(x, 3)[0], torch.sort(x)[1], torch.max(x), torch.min(x, 1)[0], x.argmax(-1), x.sum(), x.mean([2, 3])",
      "torch.logical_not(m), m & m, x.isnan(), x == 0, torch.isinf(x)",
      "torch.pad(x, [1, 2, 3, 4]), torch.pad(x, [1, 1, 1, 1], \"reflect\"), torch.roll(x, 1, 2), x.flip(3), "
      "torch.tril(x)",
      "torch.upsample_nearest2d(x, [32, 24]), torch.grid_sampler(x, x.new_zeros([2, 4, 6, 2]), 0, 0, False)",
      "torch.cat([x, x], 1), torch.stack([x, x]), x.chunk(3, 2)[2], torch.einsum(\"nchw,ndhw->ncd\", [x, x])",
      "x @ x.transpose(2, 3), torch.bmm(x[0], x[1]), torch.linear(x, x[0, 0]), torch.addmm(x[0, 0], x[0, 0], x[1, 0])",
      "x.view(2, -1), x.permute(3, 1, 0, 2).contiguous(), x.expand(2, 8, 16, 16), x.repeat(2, 1, "
      "1, 1)",
      "torch.arange(x.size(1)), torch.zeros([x.size(0), 3]), x.new_ones([4]), torch.full_like(x, 2), torch.rand([3, "
      "4])",
      "torch.repeat_interleave(x, 2, 1), torch.meshgrid([i[0], i[1]])[0], torch.one_hot(i, 8), torch.norm(x), x.std()",
  };
  const at::Tensor x = at::randn({2, 8, 16, 16});
  const at::Tensor k = at::randn({8, 8, 3, 3});
  const at::Tensor i = at::arange(10).reshape({2, 5}).remainder(8);
  const at::Tensor m = at::arange(16).reshape({2, 8}).remainder(3).eq(0);
  for (const char* expression : expressions) {
    const std::string source = std::string("def forward(self, x, k, i, m):\n  return (") + expression + ",)\n";
    SCOPED_TRACE(expression);
    torch::jit::Module module("Model");
    module.define(source);
    Reference reference(module, c10::kCPU);
    const std::vector<c10::IValue> arguments = {x, k, i, m};
    try {
      EXPECT_EQ(shapes(trace(module, arguments).output), shapes(reference.run("forward", arguments)));
    } catch (const std::exception& error) {
      ADD_FAILURE() << error.what();
    }
  }
}

TEST(Shapes, FollowNumbersThatSizesDependOn) {
  torch::jit::Module module = make(1, R"(
def forward(self, x, lengths):
  parts = []
  for i in range(int(lengths.max())):
    parts.append(torch.linear(x, self.w0) * i)
  return torch.cat(parts), x[:int(lengths[0])]
)");
  const ShapedCall call = trace(module, {rows(7), at::arange(1, 4)});
  EXPECT_EQ(call.steps.size(), 3U);
  const auto& outputs = call.output.toTupleRef().elements();
  EXPECT_EQ(outputs[0].toTensor().sizes(), at::IntArrayRef({21, kWidth}));
  EXPECT_EQ(outputs[1].toTensor().sizes(), at::IntArrayRef({1, kWidth}));
}

TEST(Shapes, SayWhereValuesWouldHaveToBeKnown) {
  const torch::jit::Module module = make(2, R"(
def forward(self, x):
  x = torch.linear(x, self.w0)
  if bool(x.sum() > 0):
    x = torch.linear(x, self.w1)
  return x
)");
  const std::string why = refusal(module, {rows()});
  EXPECT_NE(why.find("aten::Bool"), std::string::npos) << why;
  EXPECT_NE(why.find(":4"), std::string::npos) << why;
  EXPECT_NE(why.find("values that only a run has"), std::string::npos) << why;
}

/// What has been written from something without values has none either.
TEST(Shapes, ForgetValuesThatAreOverwritten) {
  const torch::jit::Module module = make(1, R"(
def forward(self, x):
  sums = torch.zeros([2], device=x.device)
  sums[0] = torch.linear(x, self.w0).sum()
  return 1 if bool(sums[0] > 0) else 2
)");
  EXPECT_NE(refusal(module, {rows()}).find("aten::Bool"), std::string::npos);
}

TEST(Shapes, LeaveArgumentsStateAndRandomNumbersAsTheyWere) {
  torch::jit::Module module =
      make(1, R"(
def forward(self, x, n):
  n += 1
  self.calls += 1
  return torch.linear(x, self.w0) + torch.rand([1]), self.calls, n
)",
           at::kFloat, [](torch::jit::Module& made) { made.register_buffer("calls", at::zeros({1}, at::kLong)); });
  const at::Tensor n = at::ones({3}, at::kLong);
  const at::Tensor x = rows(2);
  at::manual_seed(7);
  const at::Tensor expected = at::randn({4});
  at::manual_seed(7);
  trace(module, {x, n});
  EXPECT_TRUE(at::equal(at::randn({4}), expected));
  EXPECT_TRUE(at::equal(n, at::ones({3}, at::kLong)));
  EXPECT_EQ(module.attr("calls").toTensor().item<std::int64_t>(), 0);
}

TEST(Shapes, PassOnWhatTheModelRaises) {
  const torch::jit::Module module = make(1, R"(
def forward(self, x):
  assert x.size(0) == 3, "three rows"
  return torch.linear(x, self.w0)
)");
  EXPECT_THROW(trace(module, {rows(2)}), std::exception);
  EXPECT_EQ(trace(module, {rows(3)}).steps.size(), 1U);
}

} // namespace
} // namespace offload::test
