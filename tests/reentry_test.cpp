// Operators that ask the module whose call they are part of.

#include <ATen/Parallel.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>
#include <torch/library.h>

#include <functional>
#include <future>
#include <optional>
#include <string>
#include <utility>

#include "modules.h"
#include "operators.h"
#include "threads.h"

namespace offload::test {
namespace {

std::function<void()> question;

TORCH_LIBRARY(reentry_test, library) {
  library.def("ask(Tensor x) -> Tensor", [](const at::Tensor& x) {
    if (question) {
      question();
    }
    return x.clone();
  });
}

torch::jit::Module asking_module(const std::string& before = "",
                                 const std::function<void(torch::jit::Module&)>& add_attributes = {}) {
  torch::jit::Module module = make(2, "def unused(self, x):\n  return x\n", at::kFloat, add_attributes);
  module.define("def forward(self, x):\n" + before +
                    "  return torch.linear(reentry_test.ask(torch.linear(x, self.w0)), self.w1)\n",
                std::make_shared<OperatorsOf>("reentry_test"));
  return module;
}

/// What an Error says; empty when there was none.
std::string refusal(const std::function<void()>& work) {
  try {
    work();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

class Reentry : public testing::Test {
 protected:
  ~Reentry() override { question = nullptr; }

  /// In calls on this thread, and on another one, which on a GPU are computed by a thread of the lane.
  void ask_in_calls_of(Module& module, const std::function<void()>& asked) {
    const at::Tensor x = rows();
    const at::Tensor expected = module.forward({x}).toTensor();
    int times = 0;
    question = [&] {
      asked();
      ++times;
    };
    EXPECT_TRUE(module.forward({x}).toTensor().equal(expected));
    std::thread([&] { EXPECT_TRUE(module.forward({x}).toTensor().equal(expected)); }).join();
    EXPECT_TRUE(module.forward({x}).toTensor().equal(expected));
    EXPECT_EQ(times, 3);
    question = nullptr;
    EXPECT_TRUE(module.forward({x}).toTensor().equal(expected)) << "the module works on";
  }
};

TEST_F(Reentry, QuestionsAreAnsweredWithinACall) {
  const torch::jit::Module given = asking_module();
  Module module = wrap(given.deepcopy(), options_for(budget(1)));
  ask_in_calls_of(module, [&] {
    EXPECT_GT(module.placement().budget.minimum, 0);
    EXPECT_GT(module.stats().calls, 0);
    EXPECT_EQ(module.schema("forward").arguments().size(), 2);
    EXPECT_TRUE(module.attr("w1").toTensor().equal(given.attr("w1").toTensor()));
  });
}

TEST_F(Reentry, QuestionsAreAnsweredWithinTheFirstCall) {
  const torch::jit::Module given = asking_module();
  Module module = wrap(given.deepcopy(), options_for(budget(1)));
  bool asked = false;
  question = [&] {
    EXPECT_GT(module.placement().budget.minimum, 0);
    EXPECT_EQ(module.stats().calls, 0);
    EXPECT_TRUE(module.attr("w1").toTensor().equal(given.attr("w1").toTensor()));
    EXPECT_NE(refusal([&] { module.forward({rows()}); }), "");
    asked = true;
  };
  module.forward({rows()});
  EXPECT_TRUE(asked);
}

TEST_F(Reentry, StateIsAsTheCallHasWrittenItSoFar) {
  Module module = wrap(asking_module("  self.sums.add_(1)\n  self.calls += 1\n",
                                     [](torch::jit::Module& with) {
                                       with.register_attribute("calls", c10::IntType::get(), 0);
                                       with.register_buffer("sums", at::zeros({4}));
                                     }),
                       options_for(budget(1)));
  int calls = 1;
  ask_in_calls_of(module, [&] {
    ++calls;
    EXPECT_EQ(module.attr("calls").toInt(), calls);
    EXPECT_EQ(module.attr("sums").toTensor()[0].item<float>(), static_cast<float>(calls));
  });
}

TEST_F(Reentry, WhatWouldWaitForTheCallIsRefused) {
  for (const int lanes : {1, 2}) {
    Options options = options_for(budget(1, lanes));
    options.concurrency = lanes;
    Module module = wrap(asking_module(), options);
    const std::uint64_t given = budget(1, lanes);
    ask_in_calls_of(module, [&] {
      EXPECT_NE(refusal([&] { module.forward({rows()}); }).find("within a call"), std::string::npos);
      EXPECT_NE(refusal([&] { module.set_vram_budget(budget(2, 2)); }).find("within a call"), std::string::npos);
      EXPECT_NE(refusal([&] { module.release(); }).find("within a call"), std::string::npos);
    });
    EXPECT_EQ(module.placement().budget.vram, given);
  }
}

TEST_F(Reentry, ACallOfAnotherModuleInBetweenChangesNothing) {
  Module inner = wrap(asking_module(), options_for(budget(1)));
  Module outer = wrap(asking_module(), options_for(budget(1)));
  inner.forward({rows()});
  outer.forward({rows()});
  std::string reported;
  bool within = false; // the inner call
  question = [&] {
    if (within) {
      reported = refusal([&] { outer.forward({rows()}); });
    } else {
      within = true;
      inner.forward({rows()});
    }
  };
  outer.forward({rows()});
  EXPECT_NE(reported.find("within a call"), std::string::npos);
  within = true;
  reported.clear();
  inner.forward({rows()});
  EXPECT_EQ(reported, "") << "no call of the outer one is under way";
}

TEST_F(Reentry, ThreadsThatWorkForTheCallAreRefusedAndOthersAfterItAreNot) {
  Module module = wrap(asking_module(), options_for(budget(1)));
  std::promise<void> ended;
  std::promise<std::string> later;
  std::string meanwhile;
  bool asked = false;
  module.forward({rows()});
  question = [&] {
    if (std::exchange(asked, true)) {
      return;
    }
    std::promise<std::string> reported;
    at::launch([&] { reported.set_value(refusal([&] { module.forward({rows()}); })); });
    meanwhile = reported.get_future().get();
    at::launch([&] {
      ended.get_future().wait();
      later.set_value(refusal([&] { module.forward({rows()}); }));
    });
  };
  module.forward({rows()});
  ended.set_value();
  EXPECT_NE(meanwhile.find("within a call"), std::string::npos);
  EXPECT_EQ(later.get_future().get(), "");
}

} // namespace
} // namespace offload::test
