// What happens to a module before its weights are traced: its values gone through, calls inlined, constants extracted
// and rewritten, weights found.

#include <ATen/core/List.h>
#include <ATen/core/ivalue.h>
#include <ATen/ops/randn.h>
#include <gtest/gtest.h>
#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/ir/irparser.h>
#include <torch/csrc/jit/passes/dead_code_elimination.h>

#include <offload/graph/constants.h>
#include <offload/graph/inline_calls.h>
#include <offload/graph/prepare.h>
#include <offload/graph/weights.h>
#include <offload/tensor/values.h>

#include "ir.h"

namespace offload {
namespace {

TEST(FindWeights, TiesAndOverlappingViewsAreOneWeight) {
  const at::Tensor base = at::randn({300, 128});
  torch::jit::Module module("Model");
  module.register_parameter("q", base.slice(0, 0, 100), false);
  module.register_parameter("k", base.slice(0, 100, 200), false);
  module.register_parameter("v", base.slice(0, 150, 300), false);
  module.register_parameter("tied", base.slice(0, 0, 100), false);
  const ModuleWeights found = find_weights({module._ivalue()});
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
  const ModuleWeights found = find_weights({module._ivalue()});
  ASSERT_EQ(found.weights.size(), 3U);
  EXPECT_EQ(found.weights[1].name, "list.1");
  EXPECT_EQ(found.weights[2].name, "dict.x");
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

/// What a trace has of `self.counter += 1`, the counter a plain tensor.
struct Counting {
  explicit Counting(const std::string& body) {
    torch::jit::parseIR(
        "graph(%self, %x : Tensor, %flag : bool, %counter : Tensor):\n"
        "  %one : int = prim::Constant[value=1]()\n" +
            body,
        graph.get());
    const torch::jit::WithInsertPoint at(*graph->nodes().begin());
    graph->inputs()[3]->replaceAllUsesWith(graph->insertConstant(counter));
    graph->eraseInput(3);
  }

  bool is_written() const {
    const Storages written = written_constants(*graph);
    EXPECT_LE(written.size(), 1U);
    return written.count(counter.storage().unsafeGetStorageImpl()) > 0;
  }

  at::Tensor counter = at::randn({8});
  std::shared_ptr<torch::jit::Graph> graph = std::make_shared<torch::jit::Graph>();
};

TEST(WrittenConstants, AreThoseThatAWriteReaches) {
  EXPECT_TRUE(Counting("  %y : Tensor = aten::add_(%counter, %x, %one)\n  return (%y)").is_written());
  EXPECT_TRUE(Counting("  %v : Tensor = aten::unsqueeze(%counter, %one)\n  %y : Tensor = aten::add_(%v, %x, %one)\n"
                       "  return (%y)")
                  .is_written());
  EXPECT_TRUE(Counting("  %l : Tensor[] = prim::ListConstruct(%x)\n  %m : Tensor[] = aten::append(%l, %counter)\n"
                       "  %v : Tensor = aten::__getitem__(%l, %one)\n  %y : Tensor = aten::add_(%v, %x, %one)\n"
                       "  return (%y)")
                  .is_written());
  EXPECT_TRUE(Counting("  %v : Tensor = prim::If(%flag)\n    block0():\n      -> (%counter)\n    block1():\n"
                       "      -> (%x)\n  %y : Tensor = aten::add_(%v, %x, %one)\n  return (%y)")
                  .is_written());
  EXPECT_TRUE(Counting("  %v : Tensor = prim::Loop(%one, %flag, %x)\n    block0(%i : int, %z : Tensor):\n"
                       "      %y : Tensor = aten::add_(%z, %x, %one)\n      -> (%flag, %counter)\n  return (%v)")
                  .is_written());
  EXPECT_FALSE(Counting("  %y : Tensor = aten::add(%counter, %x, %one)\n  %z : Tensor = aten::add_(%y, %x, %one)\n"
                        "  return (%z)")
                   .is_written());
}

TEST(WrittenConstants, BecomeAttributesHoweverSmall) {
  Counting counting("  %y : Tensor = aten::add_(%counter, %x, %one)\n  return (%y)");
  torch::jit::Module holder("Constants");
  take_constants(*counting.graph, holder, written_constants(*counting.graph));
  torch::jit::EliminateDeadCode(counting.graph->block());
  ASSERT_EQ(holder._ivalue()->slots().size(), 1U);
  EXPECT_TRUE(holder._ivalue()->slots()[0].toTensor().is_same(counting.counter));
  check(counting.graph->toString(false), [](FileCheck& c) {
    c.check("prim::GetAttr[name=\"c0\"](%constants)")->check_not("prim::Constant[value=<Tensor>]");
  });
}

TEST(CopyBytes, KeepsStridesAndPlaces) {
  const at::Tensor base = at::randn({64, 64});
  const at::Tensor holes = base.slice(0, 3, 40, 2).slice(1, 5, 60, 3);
  const at::Tensor copy = copy_bytes(holes, c10::kCPU);
  EXPECT_TRUE(copy.equal(holes));
  EXPECT_EQ(copy.strides(), holes.strides());
  EXPECT_NE(copy.storage().data(), base.storage().data());
  EXPECT_EQ((holes.storage_offset() - copy.storage_offset()) * 4 % static_cast<std::int64_t>(kAlignment), 0);
}

/// Each level holds the one below twice: as many paths as there are no names for.
TEST(Values, ContainersThatAreSharedAreMetOnce) {
  c10::IValue value = at::randn({1});
  for (int level = 0; level < 60; ++level) {
    if (level % 2 == 0) {
      c10::impl::GenericList list(c10::AnyType::get());
      list.push_back(value);
      list.push_back(value);
      value = list;
    } else {
      value = c10::ivalue::Tuple::create({value, value});
    }
  }
  int visits = 0;
  visit_tensors("", value, [&](const std::string&, const at::Tensor&) { ++visits; });
  EXPECT_EQ(visits, 2);
  int replaced = 0;
  const c10::IValue mapped = map_tensors(
      value,
      [&](const at::Tensor& tensor) {
        ++replaced;
        return tensor;
      },
      [](const c10::IValue&) { return false; });
  EXPECT_EQ(replaced, 2);
  EXPECT_FALSE(mapped.is(value));
  EXPECT_TRUE(mapped.toTupleRef().elements()[0].is(mapped.toTupleRef().elements()[1]));
}

} // namespace
} // namespace offload
