// Models that differentiate within a call, as force fields do. Linked twice: for the host, and for the first GPU.

#include <ATen/Context.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/zeros.h>

#include "modules.h"

namespace offload::test {
namespace {

/// Four layers and the gradient of their sum by x. Both read weights, in opposite orders.
std::string forces(const std::string& name, const std::string& before, const std::string& after) {
  return "def " + name + "(self, x):\n" + before +
         "  x = x.detach().clone().requires_grad_(True)\n"
         "  y = torch.tanh(torch.linear(x, self.w0, self.little))\n"
         "  y = torch.tanh(torch.linear(y, self.w1))\n"
         "  y = y + torch.relu(torch.addmm(self.little, y, self.w2)) + torch.conv1d(y[:, :, None], self.w3[:, :, "
         "None])[:, :, 0]\n"
         "  force = torch.grad([y.sum()], [x])[0]\n" +
         after + "  return y, force\n";
}

const char* const kOn = "  torch.set_grad_enabled(True)\n";
const char* const kOff = "  torch.set_grad_enabled(False)\n";

std::string message_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const InputError& error) {
    return error.what();
  }
  return "no InputError";
}

std::uint64_t minimum_of(const torch::jit::Module& module, Options options = options_for(1)) {
  options.vram_budget = 1;
  try {
    wrap(module.deepcopy(), options);
  } catch (const BudgetError& error) {
    return error.minimum_bytes();
  }
  return 0;
}

/// What is saved for backward keeps its weights, and all of them find room in the smallest budget. `forward` is what
/// is planned for, so that the weights of the other stream, and stay in the ring until backward has read them.
TEST(Gradients, HoldWhatTheyReadAgain) {
  const torch::jit::Module module = make(8, chain(8) + forces("forces", kOn, kOff));
  Options options = options_for(minimum_of(module));
  if (kDevice.is_cpu()) { // a GPU gives out memory in units of two weights
    EXPECT_EQ(minimum_of(make(8, chain(8))) + 3 * kWeightBytes, *options.vram_budget) << "four at once, not one";
  }
  Pair pair(module, options);
  for (int call = 0; call < 3; ++call) {
    pair.expect_same({rows(2 + call)});
    pair.expect_same({rows(2 + call)}, {}, "forces");
    pair.expect_same({rows(7)}, {}, "forces");
  }
  EXPECT_GT(pair.offloaded.stats().bytes_streamed, 0U);
}

/// Each of two calls that hold weights may wait for what the other has.
TEST(Gradients, OnSeveralLanesHoldWhatAllMethodsRead) {
  std::string other = forces("other", kOn, kOff);
  for (int i = 0; i < 4; ++i) {
    const std::string name = "self.w" + std::to_string(i);
    other.replace(other.find(name), name.size(), "self.w" + std::to_string(i + 4));
  }
  const torch::jit::Module module = make(8, chain(8) + forces("forces", kOn, kOff) + other);
  Options options = options_for(1);
  const std::uint64_t one = minimum_of(module, options);
  options.concurrency = 2;
  EXPECT_EQ(minimum_of(module, options), one + 4 * kWeightBytes);
}

TEST(Gradients, TurnedOnByTheModelGiveThePlainBitsAtEveryBudget) {
  const torch::jit::Module module = make(4, forces("forward", kOn, kOff));
  const std::uint64_t minimum = minimum_of(module);
  EXPECT_THROW(wrap(module.deepcopy(), options_for(minimum - assumed() - 1)), BudgetError);
  for (const std::uint64_t vram : {minimum, minimum + kWeightBytes, 4 * minimum}) {
    Pair pair(module, options_for(vram));
    for (int call = 0; call < 3; ++call) {
      pair.expect_same({rows(1 + call)});
    }
  }
}

TEST(Gradients, AMethodThatNeedsItsCallersIsRefused) {
  const std::string source = forces("forward", "", "");
  const std::string message = message_of([&] { wrap(make(4, source), options_for(budget(8))); });
  for (const char* part :
       {"'forward' calls torch.autograd.grad", "torch.set_grad_enabled(True)", "Gradients::callers"}) {
    EXPECT_NE(message.find(part), std::string::npos) << message;
  }
  // Other methods only when they are called; what is behind a condition, only when it is met.
  Module offloaded = wrap(make(4, chain(4) + forces("forces", "", "") +
                                      "def perhaps(self, x, grad: bool):\n  if grad:\n"
                                      "    return torch.grad([x.sum()], [x])[0]\n  return x\n"),
                          options_for(budget(8)));
  offloaded.forward({rows()});
  EXPECT_NE(message_of([&] { offloaded.run_method("forces", {rows()}); }).find("'forces' calls"), std::string::npos);
  offloaded.run_method("perhaps", {rows(), false});
  EXPECT_NE(message_of([&] { offloaded.run_method("perhaps", {rows(), true}); }).find("'perhaps' calls"),
            std::string::npos);
}

TEST(Gradients, OfTheCallerAreThereWhereTheyAreAskedFor) {
  const torch::jit::Module module = make(4, forces("forward", "", "") + "def plain(self, x):\n  return x @ self.w0\n");
  Options options = options_for(budget(8));
  options.gradients = Gradients::callers;
  options.vram_budget = minimum_of(module, options);
  Reference reference(module.deepcopy(), kDevice, DeviceConstants::rewrite, Gradients::callers);
  Module offloaded = wrap(module.deepcopy(), options);
  for (int call = 0; call < 3; ++call) {
    const at::Tensor x = rows(2 + call).requires_grad_(true);
    const c10::IValue output = offloaded.forward({x});
    EXPECT_EQ(tools::first_difference(output, reference.run("forward", {x})), "");
    EXPECT_FALSE(output.toTupleRef().elements()[0].toTensor().requires_grad());
    EXPECT_FALSE(offloaded.run_method("plain", {x}).toTensor().requires_grad());
  }
  const at::NoGradGuard no_grad;
  EXPECT_NE(message_of([&] { offloaded.forward({rows()}); }).find("its caller has turned gradients off"),
            std::string::npos);
}

/// What computed an output would hold its weights for as long as the caller has it.
TEST(Gradients, DoNotLeaveTheCall) {
  const torch::jit::Module module =
      make(3,
           "def forward(self, x, xs: List[Tensor]):\n  torch.set_grad_enabled(True)\n  y = torch.linear(x, self.w0)\n"
           "  y = torch.linear(torch.linear(y, self.w1), self.w2)\n  xs.append(y)\n  self.last = y + self.last\n"
           "  torch.set_grad_enabled(False)\n  return y, x, [y.t()]\n",
           at::kFloat, [](torch::jit::Module& made) { made.register_buffer("last", at::zeros({1})); });
  Module offloaded = wrap(module.deepcopy(), options_for(minimum_of(module)));
  std::vector<c10::IValue> kept;
  const at::Tensor x = rows().requires_grad_(true).clone();
  for (int call = 0; call < 3; ++call) {
    c10::List<at::Tensor> list({x});
    kept.push_back(offloaded.forward({x, list}));
    const auto& outputs = kept.back().toTupleRef().elements();
    EXPECT_FALSE(outputs[0].toTensor().requires_grad());
    EXPECT_FALSE(outputs[2].toListRef()[0].toTensor().requires_grad());
    EXPECT_FALSE(list.get(1).requires_grad());
    EXPECT_TRUE(outputs[1].toTensor().requires_grad()) << "it is the caller's";
    EXPECT_TRUE(list.get(0).requires_grad());
  }
}

/// A lease is a tensor of its own, and the gradient by a weight is that by the tensor which was read.
TEST(Gradients, ByAWeightKeepItResident) {
  const auto by_weight = [](const char* how) { // deepcopy() makes parameters that are computed
    at::manual_seed(7);
    return make(2,
                std::string("def forward(self, x):\n  torch.set_grad_enabled(True)\n  y = torch.linear(x, self.w0)\n"
                            "  y = torch.linear(y, self.w1).sum()\n") +
                    how + "  torch.set_grad_enabled(False)\n  return x, grad\n",
                at::kFloat, [](torch::jit::Module& made) {
                  made.attr("w0").toTensor().requires_grad_(true);
                  made.attr("w1").toTensor().requires_grad_(true);
                });
  };
  const auto expect_same = [&](const char* how) {
    Reference reference(by_weight(how), kDevice);
    Options options = options_for(budget(8));
    options.example_calls.push_back({"forward", {rows()}}); // of which no gradients are left
    Module offloaded = wrap(by_weight(how), options);
    for (int call = 0; call < 3; ++call) {
      const at::Tensor x = rows();
      EXPECT_EQ(tools::first_difference(offloaded.forward({x}), reference.run("forward", {x})), "");
    }
    return offloaded.placement();
  };
  const Placement one = expect_same("  grad = torch.grad([y], [self.w0])[0]\n");
  EXPECT_EQ(one.weights.size(), 1U);
  EXPECT_EQ(one.resident_because.front().because, "handed to aten::grad");
  EXPECT_EQ(expect_same("  y.backward()\n  grad = self.w0.grad\n").weights.size(), 0U);
}

TEST(Gradients, TheModelIsToldWhetherTheyAreOn) {
  Pair pair(make(1,
                 "def forward(self, x):\n  before = torch.is_grad_enabled()\n  torch.set_grad_enabled(True)\n"
                 "  within = torch.is_grad_enabled()\n  torch.set_grad_enabled(before)\n"
                 "  return before, within, torch.is_grad_enabled(), torch.linear(x, self.w0)\n"),
            options_for(budget(8)));
  pair.expect_same({rows()});
  const c10::IValue output = pair.offloaded.forward({rows()});
  EXPECT_FALSE(output.toTupleRef().elements()[0].toBool());
  EXPECT_TRUE(output.toTupleRef().elements()[1].toBool());
}

} // namespace
} // namespace offload::test
