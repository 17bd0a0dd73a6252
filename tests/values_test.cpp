// What goes into a call and comes out of it: values of every kind, state, attributes, and what is refused.

#include <ATen/ops/linear.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/zeros.h>

#include <thread>

#include "modules.h"

namespace offload::test {
namespace {

TEST(Values, DefaultsKeywordsAndContainersComeThrough) {
  Pair pair(make(2, R"(
def forward(self, x, scale: float = 2.0, parts: Optional[List[Tensor]] = None) -> Tuple[Tensor, Dict[str, Tensor], int]:
  y = torch.linear(x, self.w0) * scale
  if parts is not None:
    y = y + parts[0]
  return y, {'z': torch.linear(y, self.w1)}, 7
def twice(self, x):
  return [torch.linear(x, self.w1), x]
)"),
            options_for(budget(1)));
  pair.expect_same({rows()});
  pair.expect_same({rows()}, {{"scale", 3.0}});
  pair.expect_same({rows(), 1.0, c10::List<at::Tensor>({rows()})});
  pair.expect_same({rows()}, {}, "twice");
  pair.expect_same({rows()});
}

TEST(Values, WeightsThatAreReturnedAreCopies) {
  Pair pair(make(2, "def forward(self, x):\n  return self.w0, self.w1.t(), torch.linear(x, self.w0), self.little\n"),
            options_for(budget(1)));
  c10::IValue first = pair.offloaded.forward({rows()});
  pair.expect_same({rows()});
  first.toTupleRef().elements()[0].toTensor().zero_(); // ours to change
  pair.expect_same({rows()});
}

TEST(Values, WrittenStateIsKept) {
  torch::jit::Module module = make(2, R"(
def forward(self, x):
  self.count = self.count + 1
  self.sums.add_(x.sum(0))
  return torch.linear(x, self.w0) + torch.linear(self.sums, self.w1) * float(self.count)
)",
                                   at::kFloat, [](torch::jit::Module& m) {
                                     m.register_attribute("count", c10::IntType::get(), 0);
                                     m.register_buffer("sums", at::zeros({kWidth}));
                                   });
  Pair pair(module, options_for(budget(1)));
  const at::Tensor x = rows();
  for (int call = 0; call < 3; ++call) {
    pair.expect_same({x});
  }
}

/// A module as a trace makes it of one whose counter is a plain tensor: a constant of the graph, in two methods.
torch::jit::Module counting() {
  torch::jit::Module module =
      make(1,
           "def forward(self, x):\n  self.counter[0:1] += 1\n"
           "  return torch.linear(x, self.w0) * self.counter.sum()\n"
           "def count(self):\n  return self.counter + 0\n",
           at::kFloat, [](torch::jit::Module& made) { made.register_buffer("counter", at::zeros({3})); });
  const at::Tensor counter = at::zeros({3});
  for (const char* method : {"forward", "count"}) {
    const auto graph = module.get_method(method).graph();
    const torch::jit::WithInsertPoint at(*graph->nodes().begin());
    torch::jit::Value* constant = graph->insertConstant(counter);
    for (torch::jit::Node* node : graph->nodes()) {
      if (node->kind() == torch::jit::prim::GetAttr && node->s(torch::jit::attr::name) == "counter") {
        node->output()->replaceAllUsesWith(constant);
      }
    }
  }
  return module;
}

TEST(Values, ConstantsThatAreWrittenAreState) {
  const torch::jit::Module plain = counting(); // copies would share its constants
  const torch::jit::Module module = counting();
  module.attr("w0").toTensor().copy_(plain.attr("w0").toTensor());
  module.attr("little").toTensor().copy_(plain.attr("little").toTensor());
  Reference reference(plain, kDevice);
  Options options = options_for(budget(1));
  options.concurrency = 4;
  options.example_calls = {{"forward", {rows()}}, {"forward", {rows(2)}}}; // put back what they write
  Module offloaded = wrap(module, options);
  EXPECT_TRUE(offloaded.placement().writes_state);
  for (int call = 0; call < 3; ++call) {
    const at::Tensor x = rows();
    EXPECT_EQ(tools::first_difference(offloaded.forward({x}), reference.run("forward", {x})), "");
    EXPECT_EQ(tools::first_difference(offloaded.run_method("count", {}), reference.run("count", {})), "");
  }
}

TEST(Values, BadInputIsNamed) {
  Module module = wrap(make(1, chain(1)), options_for(budget(1)));
  const auto message = [&](const std::function<void()>& call) -> std::string {
    try {
      call();
    } catch (const InputError& error) {
      return error.what();
    } catch (const std::exception& error) {
      return std::string("not an InputError: ") + error.what();
    }
    return "nothing was thrown";
  };
  EXPECT_NE(message([&] { module.forward({}); }).find("'x'"), std::string::npos);
  EXPECT_NE(message([&] { module.forward({rows(), rows()}); }).find("Expected at most"), std::string::npos);
  EXPECT_NE(message([&] { module.forward({3}); }).find("'x'"), std::string::npos);
  EXPECT_NE(message([&] { module.forward({rows()}, {{"y", 1}}); }).find('y'), std::string::npos);
  EXPECT_NE(message([&] { module.run_method("backward", {}); }).find("'backward'"), std::string::npos);
  EXPECT_NE(message([&] { module.attr("w7"); }).find("'w7'"), std::string::npos);
  Options options = options_for(0);
  EXPECT_NE(message([&] { wrap(make(1, chain(1)), options); }).find("vram_budget is 0"), std::string::npos);
  EXPECT_NE(message([] { wrap(torch::jit::Module(), options_for(budget(1))); }).find("the module is empty"),
            std::string::npos);
  options = options_for(budget(1));
  options.concurrency = 0;
  EXPECT_NE(message([&] { wrap(make(1, chain(1)), options); }).find("concurrency"), std::string::npos);
}

TEST(Values, AttributesAreHostCopies) {
  const torch::jit::Module module = make(2, chain(2));
  const Module offloaded = wrap(module.deepcopy(), options_for(budget(1)));
  const at::Tensor copy = offloaded.attr("w1").toTensor();
  EXPECT_TRUE(copy.device().is_cpu());
  EXPECT_TRUE(copy.equal(module.attr("w1").toTensor()));
  EXPECT_FALSE(offloaded.attr("training").toBool());
  EXPECT_THROW(offloaded.attr(""), InputError);
  EXPECT_THROW(offloaded.attr("w1."), InputError);
}

TEST(Values, AListThatTheModelKeepsIsNotTheOneThatComesOut) {
  const torch::jit::Module module = make(
      2, R"(
def forward(self, x) -> List[Tensor]:
  self.seen.append(torch.linear(x, self.w0).sum(0))
  return self.seen
def weights(self) -> List[Tensor]:
  return self.kept
def use(self, x):
  return torch.linear(x, self.kept[0])
)",
      at::kFloat, [](torch::jit::Module& m) {
        m.register_attribute("seen", c10::ListType::ofTensors(), c10::List<at::Tensor>({at::zeros({kWidth})}));
        m.register_attribute("kept", c10::ListType::ofTensors(), c10::List<at::Tensor>({at::randn({kWidth, kWidth})}));
      });
  Pair pair(module, options_for(budget(1)));
  for (int call = 0; call < 3; ++call) {
    pair.expect_same({rows()});
    pair.expect_same({}, {}, "weights");
    pair.expect_same({rows()}, {}, "use");
  }
  auto copies = pair.offloaded.run_method("weights", {}).toTensorList();
  copies.get(0).zero_();
  copies.clear(); // the caller's, to change
  pair.expect_same({}, {}, "weights");
  EXPECT_EQ(pair.offloaded.attr("seen").toTensorList().size(), 4U);
  EXPECT_TRUE(pair.offloaded.attr("kept.0").toTensor().equal(module.attr("kept").toTensorList().get(0)));
  EXPECT_TRUE(pair.offloaded.attr("kept").toTensorList().get(0).equal(module.attr("kept").toTensorList().get(0)));
}

TEST(Values, WhatTheModelPutsIntoAListOfTheCallerIsTheCallers) {
  const torch::jit::Module module = make(2, R"(
def forward(self, x, into: List[Tensor], named: Dict[str, List[Tensor]]):
  into.append(torch.linear(x, self.w0))
  named['y'].append(self.w1)
  return into
)");
  Pair pair(module, options_for(budget(1)));
  const at::Tensor x = rows();
  const auto call = [&](auto run) {
    c10::List<at::Tensor> into({x});
    c10::Dict<std::string, c10::List<at::Tensor>> named;
    named.insert("y", c10::List<at::Tensor>());
    c10::IValue output = run(std::vector<c10::IValue>{x, into, named});
    EXPECT_TRUE(output.is(c10::IValue(into)));
    return c10::ivalue::Tuple::create({output, named});
  };
  const c10::IValue expected = call([&](const auto& inputs) { return pair.reference.run("forward", inputs); });
  std::vector<c10::IValue> kept;
  for (int i = 0; i < 3; ++i) {
    kept.emplace_back(call([&](const auto& inputs) { return pair.offloaded.forward(inputs); }));
  }
  for (const c10::IValue& value : kept) { // later calls have not overwritten them
    EXPECT_EQ(tools::first_difference(value, expected), "");
  }
}

TEST(Values, CallsThatChangeTheModuleComeOneAfterAnother) {
  Options options = options_for(budget(4));
  options.concurrency = 4;
  torch::jit::Module module =
      make(2, "def forward(self, x):\n  self.sums.add_(x.sum(0))\n  return torch.linear(x, self.w0)\n", at::kFloat,
           [](torch::jit::Module& m) { m.register_buffer("sums", at::zeros({kWidth})); });
  Module offloaded = wrap(module.deepcopy(), options);
  const at::Tensor ones = at::ones({1, kWidth}).to(kDevice);
  offloaded.forward({ones});
  constexpr int kThreads = 4;
  constexpr int kCalls = 25;
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&] {
      for (int call = 0; call < kCalls; ++call) {
        offloaded.forward({ones});
      }
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  EXPECT_TRUE(offloaded.attr("sums").toTensor().eq(1 + kThreads * kCalls).all().item<bool>());
}

} // namespace
} // namespace offload::test
