// Passes as text: IR in, IR out.

#include <gtest/gtest.h>
#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/ir/irparser.h>
#include <torch/csrc/jit/passes/dead_code_elimination.h>
#include <torch/csrc/jit/testing/file_check.h>

#include <offload/graph/constants.h>
#include <offload/graph/inline_calls.h>
#include <offload/graph/lower.h>
#include <offload/graph/prepare.h>
#include <offload/graph/program.h>
#include <offload/graph/trace_weights.h>
#include <offload/graph/weights.h>

#include <ATen/ops/randn.h>

namespace offload {
namespace {

using torch::jit::testing::FileCheck;

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
  lowered.text = forward.graph->toString(false);
  lowered.steps = forward.steps;
  return lowered;
}

void check(const std::string& text, const std::function<void(FileCheck&)>& expect) {
  FileCheck checks;
  expect(checks);
  checks.run(text);
}

TEST(Lower, LinearBecomesOffloadLinear) {
  const Lowered lowered = lower(make("def forward(self, x):\n  return torch.linear(x, self.a, self.little)\n"));
  check(lowered.text, [](FileCheck& c) { c.check("offload::linear")->check_not("aten::linear"); });
  ASSERT_EQ(lowered.steps.size(), 1U);
  EXPECT_EQ(lowered.steps[0].weights.size(), 1U) << "the small bias is resident";
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
  const Lowered lowered = lower(make("def forward(self, x):\n  return torch.addmm(self.a, x, self.b)\n"));
  check(lowered.text, [](FileCheck& c) {
    c.check("prim::ListConstruct")->check_count("offload::acquire", 1)->check("prim::ListUnpack")->check("aten::addmm");
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
    c.check("aten::chunk")
        ->check("prim::ListUnpack")
        ->check("aten::t")
        ->check("offload::acquire")
        ->check("aten::matmul");
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
  EXPECT_TRUE(lowered.steps[0].rows_only);
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

TEST(TraceWeights, SmallWeightsStay) {
  const Lowered lowered = lower(make("def forward(self, x):\n  return x + self.little + self.bias.sum()\n"));
  EXPECT_EQ(lowered.because("little"), "small");
  EXPECT_EQ(lowered.because("bias"), "");
}

TEST(FindWeights, TiesAndOverlappingViewsAreOneWeight) {
  const at::Tensor base = at::randn({300, 128});
  torch::jit::Module module("Model");
  module.register_parameter("q", base.slice(0, 0, 100), false);
  module.register_parameter("k", base.slice(0, 100, 200), false);
  module.register_parameter("v", base.slice(0, 150, 300), false);
  module.register_parameter("tied", base.slice(0, 0, 100), false);
  const ModuleWeights found = find_weights({module});
  ASSERT_EQ(found.weights.size(), 2U);
  EXPECT_EQ(found.weights[0].name, "q");
  EXPECT_EQ(found.weights[0].aliases, (std::vector<std::string>{"tied"}));
  EXPECT_EQ(found.weights[1].name, "k");
  EXPECT_EQ(found.weights[1].aliases, (std::vector<std::string>{"v"}));
  EXPECT_EQ(found.weights[1].bytes(), 200U * 128U * 4U);
}

TEST(FindWeights, LooksIntoContainers) {
  torch::jit::Module module("Model");
  c10::List<at::Tensor> list({at::randn({8}), at::randn({9})});
  module.register_attribute("list", c10::ListType::ofTensors(), list);
  c10::Dict<std::string, at::Tensor> dict;
  dict.insert("x", at::randn({10}));
  module.register_attribute("dict", c10::DictType::create(c10::StringType::get(), c10::TensorType::get()), dict);
  const ModuleWeights found = find_weights({module});
  ASSERT_EQ(found.weights.size(), 3U);
  EXPECT_EQ(found.weights[1].name, "list.1");
  EXPECT_EQ(found.weights[2].name, "dict.x");
}

TEST(PlaceWeights, LeavesLeasesForStreamedWeightsOnly) {
  const Lowered lowered = lower(make(R"(
def forward(self, x):
  x = torch.linear(torch.linear(x, self.a), self.b)
  return torch.addmm(self.a, x, self.a) + torch.addmm(self.b, x, self.a)
)"));
  const auto graph = place_weights(*lowered.program.methods.at("forward").graph, {true, false, false, true});
  check(graph->toString(false), [](FileCheck& c) {
    c.check("aten::linear[placement=\"resident\"](")
        ->check("placement=\"streamed\"")
        ->check_not("offload::acquire")
        ->check("aten::addmm")
        ->check_count("offload::acquire", 1, true)
        ->check("aten::addmm");
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
  const auto graph = place_weights(*lowered.program.methods.at("forward").graph, {false, false, false, true});
  check(graph->toString(false),
        [](FileCheck& c) { c.check("aten::linear[placement=\"resident\"")->check("placement=\"streamed\""); });
}

TEST(InlineCalls, AForkRunsWhereItStands) {
  auto body = std::make_shared<torch::jit::Graph>();
  torch::jit::parseIR("graph(%x : Tensor):\n  %y : Tensor = aten::relu(%x)\n  return (%y)", body.get());
  auto graph = std::make_shared<torch::jit::Graph>();
  graph->addInput("self");
  torch::jit::Node* fork = graph->insertNode(graph->create(torch::jit::prim::fork, {graph->addInput("x")}, 1));
  fork->g_(torch::jit::attr::Subgraph, body);
  fork->output()->setType(c10::FutureType::create(c10::TensorType::get()));
  graph->registerOutput(graph->insert(c10::Symbol::fromQualString("aten::wait"), {fork->output()}));
  inline_calls(graph, torch::jit::Module("Model"));
  check(graph->toString(false), [](FileCheck& c) {
    c.check_not("prim::fork")
        ->check("aten::relu(%x)")
        ->check("Future[Tensor] = offload::completed")
        ->check("aten::wait");
  });
}

TEST(InlineCalls, AnInterfaceIsAChoiceAmongModules) {
  const auto unit = std::make_shared<torch::jit::CompilationUnit>();
  torch::jit::Module module("Model", unit);
  for (const char* name : {"first", "second"}) {
    torch::jit::Module part(std::string("Part") + name, unit);
    part.register_parameter("w", at::randn({128, 128}), false);
    part.define("def forward(self, x: Tensor) -> Tensor:\n  return torch.linear(x, self.w)\n");
    module.register_module(name, part);
  }
  const auto interface = c10::InterfaceType::create("__torch__.Step", /*is_module=*/true);
  interface->addMethod(module.attr("first").toModule().get_method("forward").function().getSchema());
  auto graph = std::make_shared<torch::jit::Graph>();
  torch::jit::Value* self = graph->addInput("self");
  self->setType(module.type());
  torch::jit::Value* chosen = graph->addInput("chosen");
  chosen->setType(interface);
  torch::jit::Value* x = graph->addInput("x");
  torch::jit::Node* call = graph->insertNode(graph->create(torch::jit::prim::CallMethod, {chosen, x}, 1));
  call->s_(torch::jit::attr::name, "forward");
  graph->registerOutput(call->output());
  inline_calls(graph, module);
  check(graph->toString(false), [](FileCheck& c) {
    c.check("GetAttr[name=\"first\"]")
        ->check("aten::__is__")
        ->check("prim::If")
        ->check("aten::linear")
        ->check("GetAttr[name=\"second\"]")
        ->check("aten::__is__")
        ->check("aten::linear")
        ->check("prim::RaiseException");
  });
  check(graph->toString(false), [](FileCheck& c) { c.check_not("prim::CallMethod"); });
}

TEST(TakeConstants, LargeOnesBecomeAttributesAndSharedOnesOne) {
  const at::Tensor weight = at::randn({128, 128});
  auto graph = std::make_shared<torch::jit::Graph>();
  torch::jit::Value* x = graph->addInput("x");
  for (int i = 0; i < 2; ++i) {
    x = graph->insert(torch::jit::aten::matmul, {x, graph->insertConstant(weight)});
  }
  x = graph->insert(torch::jit::aten::add, {x, graph->insertConstant(at::randn({128}))});
  graph->registerOutput(x);
  torch::jit::Module holder("Constants");
  take_constants(*graph, holder);
  torch::jit::EliminateDeadCode(graph->block());
  EXPECT_EQ(holder._ivalue()->slots().size(), 1U);
  EXPECT_TRUE(holder._ivalue()->slots()[0].toTensor().is_same(weight));
  check(graph->toString(false), [](FileCheck& c) {
    c.check_count("prim::GetAttr[name=\"c0\"](%constants)", 2, true)->check("prim::Constant[value=<Tensor>]");
  });
}

TEST(RewriteDevices, DeviceConstantsFollowTheModule) {
  auto graph = make("def forward(self, x):\n  return torch.zeros([2], device=torch.device('cpu'))\n")
                   .get_method("forward")
                   .graph()
                   ->copy();
  std::vector<std::string> rewritten;
  rewrite_devices(graph, c10::Device("cuda:0"), rewritten);
  check(graph->toString(false), [](FileCheck& c) { c.check("Device = prim::Constant[value=\"cuda:0\"]"); });
  EXPECT_EQ(rewritten.size(), 1U);
}

} // namespace
} // namespace offload
