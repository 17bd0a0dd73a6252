// Weights found, traced and lowered, as text: IR in, IR out.

#include <ATen/ops/arange.h>
#include <ATen/ops/randn.h>
#include <gtest/gtest.h>
#include <torch/csrc/jit/api/module.h>

#include <offload/graph/lower.h>
#include <offload/graph/make_program.h>
#include <offload/graph/method_code.h>
#include <offload/graph/trace_weights.h>
#include <offload/graph/weights.h>
#include <offload/tensor/values.h>

#include "ir.h"

namespace offload {
namespace {

/// A module with square weights `a`, `b`, a vector `bias` and a small `little`, and the methods of `source`.
torch::jit::Module make(const std::string& source) {
  torch::jit::Module module("Model");
  module.register_parameter("a", at::randn({128, 128}), false);
  module.register_parameter("b", at::randn({128, 128}), false);
  module.register_parameter("bias", at::randn({8192}), false);
  module.register_parameter("little", at::randn({128}), false);
  module.register_attribute("training", c10::BoolType::get(), false);
  module.define(source);
  return module;
}

struct Lowered {
  Program program;
  std::string text;
  std::vector<LoweredStep> steps;

  std::string because(const std::string& name) const {
    for (WeightId id = 0; id < program.weights.weights.size(); ++id) {
      if (program.weights.weights[id].name == name) {
        return program.stays_because[id];
      }
    }
    return "no such weight";
  }
};

Lowered lower(const torch::jit::Module& module) {
  Lowered lowered{make_program(module, c10::kCPU), "", {}};
  const LoweredMethod& forward = lowered.program.methods.at("forward");
  lowered.text = forward.code->lowered->toString(false);
  lowered.steps = forward.steps;
  return lowered;
}

TEST(Lower, LinearBecomesOffloadLinear) {
  const Lowered lowered = lower(make("def forward(self, x):\n  return torch.linear(x, self.a, self.little)\n"));
  check(lowered.text, [](FileCheck& c) { c.check("offload::linear")->check_not("aten::linear"); });
  ASSERT_EQ(lowered.steps.size(), 1U);
  EXPECT_EQ(lowered.steps[0].weights.size(), 1U) << "the small bias is resident";
}

TEST(Lower, WhatTheRunPicksTogetherMustFindRoom) {
  torch::jit::Module module = make("def forward(self, x):\n  return x\n");
  c10::List<at::Tensor> weights;
  for (int i = 0; i < 3; ++i) {
    weights.push_back(at::randn({128, 128}));
  }
  module.register_attribute("list", c10::ListType::ofTensors(), weights);
  module.register_parameter("small", at::randn({128}), false);
  module.define(R"(
def one(self, x, i: int):
  return torch.linear(x, self.list[i])
def one_beside_what_stays(self, x, i: int):
  return torch.linear(x, self.list[i], self.small)
def two(self, x, i: int, j: int):
  return torch.addcmul(self.list[i], x, self.list[j])
def two_in_a_list(self, x, i: int, j: int):
  return torch.cat([self.list[i], self.list[j], x], 0)
def two_joined(self, x, i: int, j: int):
  return torch.cat([self.list[i]] + [self.list[j]] + [x], 0)
def all(self, x):
  return torch.cat(self.list, 0)
)");
  const Program program = make_program(module, c10::kCPU);
  const auto most = [&](const std::string& method) {
    std::size_t at_once = 0;
    for (const Choice& choice : program.methods.at(method).choices) {
      EXPECT_EQ(choice.weights.size(), 3U);
      at_once = std::max(at_once, choice.at_once);
    }
    return at_once;
  };
  EXPECT_EQ(most("one"), 1U);
  EXPECT_EQ(most("one_beside_what_stays"), 1U);
  EXPECT_EQ(most("two"), 2U);
  EXPECT_EQ(most("two_in_a_list"), 2U);
  EXPECT_EQ(most("two_joined"), 2U);
  EXPECT_EQ(most("all"), 0U) << "there is nothing to pick";
}

/// Each round of the loop combines what there is in new ways: a trace that tells them all apart would never end.
TEST(Lower, ListsThatAreJoinedInLoopsCountAsOne) {
  torch::jit::Module module = make("def forward(self, x):\n  return x\n");
  constexpr int kOfEach = 20;
  std::string lists;
  for (const char* list : {"one", "two", "three"}) {
    lists += std::string("  ") + list + " = [";
    for (int i = 0; i < kOfEach; ++i) {
      const std::string name = list + std::to_string(i);
      module.register_parameter(name, at::randn({96, 96}), false);
      lists += "self." + name + (i + 1 < kOfEach ? ", " : "]\n");
    }
  }
  module.define("def joined(self, x):\n" + lists + R"(
  l = one + two
  m = [one[0]]
  for i in range(20):
    l = l + [one[i]] + [two[i]] + m
    m = m + [three[i]] + l[:1]
    for j in range(i):
      m = m + l[:j] + [two[j]]
      l = l + m[:1]
  return torch.cat(l, 0) + torch.cat(m, 0)
)");
  const Program program = make_program(module, c10::kCPU);
  const LoweredMethod& joined = program.methods.at("joined");
  EXPECT_LT(joined.steps.size(), 1000U);
  std::set<WeightId> all;
  for (const LoweredStep& step : joined.steps) {
    all.insert(step.weights.begin(), step.weights.end());
  }
  EXPECT_EQ(all.size(), 3U * kOfEach);
}

TEST(Lower, LinearInBranchesAndLoopsIsFoundInOrder) {
  const Lowered lowered = lower(make(R"(
def forward(self, x):
  if bool(x.sum() > 0):
    x = torch.linear(x, self.a)
  else:
    x = torch.linear(x, self.b)
  for i in range(3):
    if bool(x.sum() > 0):
      x = torch.linear(x, self.b)
  return x
)"));
  check(lowered.text, [](FileCheck& c) { c.check_count("offload::linear", 3, true)->check_not("aten::linear"); });
  ASSERT_EQ(lowered.steps.size(), 3U);
  EXPECT_EQ(lowered.steps[0].weights, (Step{0}));
  EXPECT_EQ(lowered.steps[1].weights, (Step{1}));
  EXPECT_EQ(lowered.steps[2].weights, (Step{1}));
  EXPECT_EQ(lowered.steps[2].times, 3);
}

TEST(Lower, BranchesDecidedByAttributesThatNothingWritesAreGone) {
  const Lowered lowered = lower(make(R"(
def forward(self, x):
  if self.training:
    return torch.linear(x, self.a)
  return torch.linear(x, self.b)
)"));
  check(lowered.text, [](FileCheck& c) { c.check_count("offload::linear", 1, true)->check_not("prim::If"); });
  EXPECT_EQ(lowered.steps[0].weights, (Step{1}));
}

TEST(Lower, OtherOperatorsGetTheirWeightsFromOneAcquire) {
  const Lowered lowered = lower(make("def forward(self, x):\n  return torch.addcmul(self.a, x, self.b)\n"));
  check(lowered.text, [](FileCheck& c) {
    c.check("prim::ListConstruct")
        ->check_count("offload::acquire", 1)
        ->check("prim::ListUnpack")
        ->check("aten::addcmul");
  });
  ASSERT_EQ(lowered.steps.size(), 1U);
  EXPECT_EQ(lowered.steps[0].weights, (Step{0, 1}));
}

TEST(Lower, ViewsAndContainersPassPlaceholdersOn) {
  const Lowered lowered = lower(make(R"(
def forward(self, x):
  q, k = torch.chunk(self.a, 2, 0)
  return torch.cat([torch.matmul(x, q.t()), torch.matmul(x, k.t())], 1)
)"));
  check(lowered.text, [](FileCheck& c) {
    c.check("aten::chunk")->check("prim::ListUnpack")->check("aten::t")->check("offload::matmul");
  });
  ASSERT_EQ(lowered.steps.size(), 2U);
  EXPECT_EQ(lowered.steps[0].weights, (Step{0}));
}

TEST(Lower, ListsOfWeightsAreAcquiredAsLists) {
  const Lowered lowered = lower(make("def forward(self, x):\n  return torch.cat([self.a, self.b, x], 0)\n"));
  check(lowered.text,
        [](FileCheck& c) { c.check("prim::ListConstruct")->check("offload::acquire")->check("aten::cat"); });
  ASSERT_EQ(lowered.steps.size(), 1U);
  EXPECT_EQ(lowered.steps[0].weights, (Step{0, 1}));
}

TEST(Lower, EmbeddingTablesAreReadAsRows) {
  const Lowered lowered = lower(make("def forward(self, x):\n  return torch.embedding(self.a, x.to(4))\n"));
  check(lowered.text, [](FileCheck& c) { c.check("offload::rows")->check("aten::embedding"); });
  ASSERT_EQ(lowered.steps.size(), 1U);
  EXPECT_EQ(lowered.steps[0].taken, Taken::rows);
}

TEST(Lower, ProductsAreThoseOfOursWithTheSameInputs) {
  const Lowered lowered = lower(make(R"(
def forward(self, x):
  x = torch.addmm(self.little, x, self.a, beta=0.5, alpha=2)
  x = torch.mm(torch.matmul(x, self.a.t()), self.b)
  return torch.bmm(x.unsqueeze(0), self.b.unsqueeze(0)) + torch.einsum('ij,kj->ik', [x, self.b])
)"));
  check(lowered.text, [](FileCheck& c) {
    c.check("offload::addmm[")
        ->check("offload::matmul[")
        ->check("offload::mm[")
        ->check("offload::bmm[")
        ->check("offload::acquire")
        ->check("aten::einsum");
  });
  ASSERT_EQ(lowered.steps.size(), 5U);
  EXPECT_EQ(lowered.steps[0].taken, Taken::product);
  EXPECT_EQ(lowered.steps[4].taken, Taken::leased);
}

TEST(Lower, WhatTheRunPicksIsAStepForEachAlternative) {
  const Lowered lowered = lower(make(R"(
def forward(self, x):
  w = self.a if bool(x.sum() > 0) else self.b
  return torch.linear(x, w)
)"));
  ASSERT_EQ(lowered.steps.size(), 2U);
  EXPECT_EQ(lowered.steps[0].weights, (Step{0}));
  EXPECT_EQ(lowered.steps[1].weights, (Step{1}));
  EXPECT_EQ(lowered.because("a"), "");
  const auto half = place_weights(*lowered.program.methods.at("forward").code->lowered, {true, false, false, true});
  check(half->toString(false), [](FileCheck& c) { c.check("placement=\"streamed\""); });
}

TEST(Lower, AFusedEncoderLayerTakesItsWeightsPartByPart) {
  torch::jit::Module module("Model");
  for (const char* name : {"qkv", "proj", "up", "down"}) {
    module.register_parameter(name, at::randn({128, 128}), false);
  }
  for (const char* name : {"norm1", "norm2", "bias"}) {
    module.register_parameter(name, at::randn({8192}), false);
  }
  module.define(R"(
def forward(self, x):
  return torch._transformer_encoder_layer_fwd(x, 8192, 4, self.qkv, self.bias, self.proj, self.bias, True, False, 1e-5,
      self.norm1, self.norm1, self.norm2, self.norm2, self.up, self.bias, self.down, self.bias)
)");
  const Lowered lowered = lower(module);
  check(lowered.text, [](FileCheck& c) {
    c.check("offload::_transformer_encoder_layer_fwd")->check_not("aten::_transformer_encoder_layer_fwd");
  });
  std::vector<Step> steps;
  for (const LoweredStep& step : lowered.steps) {
    steps.push_back(step.weights);
  }
  EXPECT_EQ(steps, (std::vector<Step>{{0, 1, 4, 6}, {2, 6}, {3, 6}, {5}}));
}

TEST(Lower, MetadataReadsNothing) {
  const Lowered lowered =
      lower(make("def forward(self, x):\n  return x.to(self.a.dtype) + self.a.size(0) + self.b.dim()\n"));
  check(lowered.text, [](FileCheck& c) { c.check_not("offload::"); });
  EXPECT_TRUE(lowered.steps.empty());
}

TEST(TraceWeights, WrittenWeightsStay) {
  const Lowered lowered = lower(make(R"(
def forward(self, x):
  self.a.add_(1.0)
  self.b.t().mul_(2.0)
  return torch.linear(x, self.a) + torch.linear(x, self.b)
)"));
  EXPECT_EQ(lowered.because("a"), "written by aten::add_");
  EXPECT_EQ(lowered.because("b"), "written by aten::mul_") << "through a view";
  EXPECT_TRUE(lowered.steps.empty());
}

TEST(TraceWeights, AWriteToWhatMayBeTheWeightIsAWriteToIt) {
  const Lowered lowered = lower(make(R"(
def forward(self, x):
  y = self.a.contiguous()
  y.add_(1.0)
  z = x.clone()
  z.add_(self.b)
  return torch.linear(y + z, self.a)
)"));
  EXPECT_EQ(lowered.because("a"), "written by aten::add_");
  EXPECT_EQ(lowered.because("b"), "") << "it is only read";
}

TEST(TraceWeights, WhatOneMethodWritesStaysForAll) {
  const Lowered lowered = lower(make(R"(
def forward(self, x):
  return torch.linear(x, self.a)
def update(self, x):
  self.a.copy_(x)
)"));
  EXPECT_EQ(lowered.because("a"), "written by aten::copy_");
}

TEST(TraceWeights, WhatIsPutIntoTheModuleStays) {
  torch::jit::Module module = make("def forward(self, x):\n  return x\n");
  module.register_attribute("kept", c10::ListType::ofTensors(), c10::List<at::Tensor>({at::randn({2})}));
  module.define(R"(
def keep(self, x):
  mine = [self.b]
  mine.append(x)
  self.kept.append(self.a)
  return torch.cat(mine)
)");
  const Lowered lowered = lower(module);
  EXPECT_EQ(lowered.because("a"), "written to a container of the module");
  EXPECT_EQ(lowered.because("b"), "") << "a list of the call's own";
  EXPECT_TRUE(lowered.program.writes_state);
}

TEST(TraceWeights, AWriteThroughAListIsAWriteToItsTensors) {
  const Lowered lowered =
      lower(make("def forward(self, x):\n  both = [self.a, x]\n  torch._foreach_add_(both, 1)\n  return both[1]\n"));
  EXPECT_EQ(lowered.because("a"), "written by aten::_foreach_add_");
}

TEST(TraceWeights, SmallWeightsStay) {
  const Lowered lowered = lower(make("def forward(self, x):\n  return x + self.little + self.bias.sum()\n"));
  EXPECT_EQ(lowered.because("little"), "small");
  EXPECT_EQ(lowered.because("bias"), "");
}

TEST(PlaceWeights, LeavesLeasesForStreamedWeightsOnly) {
  const Lowered lowered = lower(make(R"(
def forward(self, x):
  x = torch.linear(torch.linear(x, self.a), self.b)
  return torch.addcmul(self.a, x, self.a) + torch.addcmul(self.b, x, self.a)
)"));
  const auto graph = place_weights(*lowered.program.methods.at("forward").code->lowered, {true, false, false, true});
  check(graph->toString(false), [](FileCheck& c) {
    c.check("aten::linear[placement=\"resident\"](")
        ->check("placement=\"streamed\"")
        ->check_not("offload::acquire")
        ->check("aten::addcmul")
        ->check_count("offload::acquire", 1, true)
        ->check("aten::addcmul");
  });
  check(lowered.text, [](FileCheck& c) { c.check_count("offload::linear", 2, true); });
}

TEST(PlaceWeights, EachLinearSaysWhereItsWeightIs) {
  const Lowered lowered = lower(make(R"(
def forward(self, x):
  x = torch.linear(torch.linear(x, self.a), self.b)
  self.a.add_(1)
  return x
)"));
  const auto graph = place_weights(*lowered.program.methods.at("forward").code->lowered, {false, false, false, true});
  check(graph->toString(false),
        [](FileCheck& c) { c.check("aten::linear[placement=\"resident\"")->check("placement=\"streamed\""); });
}

TEST(MapTensors, ATupleMayHoldATensorThatIsUndefined) {
  const c10::IValue tuple = c10::ivalue::Tuple::create(at::Tensor(), at::arange(2.0));
  const c10::IValue outer = c10::ivalue::Tuple::create(tuple, 3);
  const c10::IValue mapped = map_tensors(
      outer, [](const at::Tensor& tensor) { return tensor.mul(2); }, [](const c10::IValue&) { return false; });
  const auto& elements = mapped.toTupleRef().elements()[0].toTupleRef().elements();
  EXPECT_FALSE(elements[0].toTensor().defined());
  EXPECT_TRUE(elements[1].toTensor().equal(at::arange(2.0).mul(2)));
}

} // namespace
} // namespace offload
