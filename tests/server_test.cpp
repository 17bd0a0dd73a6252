// What servers do to a module: many threads, sizes that change, calls that raise, questions meanwhile.

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>
#include <torch/library.h>

#include <algorithm>
#include <atomic>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <random>
#include <set>
#include <thread>
#include <utility>
#include <vector>

#include "modules.h"
#include "operators.h"
#include "threads.h"

namespace offload::test {
namespace {

Latch latch;

TORCH_LIBRARY(server_test, library) {
  library.def("hold(Tensor x) -> Tensor", [](const at::Tensor& x) {
    latch.pass();
    return x.clone();
  });
}

/// A call of it stays inside for as long as the latch is held, if it `waits`.
torch::jit::Module holding_module() {
  torch::jit::Module module = make(4, "def unused(self, x):\n  return x\n");
  module.define(R"(
def forward(self, x, waits: bool):
  x = torch.linear(torch.linear(x, self.w0), self.w1)
  if waits:
    x = server_test.hold(x)
  return torch.linear(torch.linear(x, self.w2), self.w3)
)",
                std::make_shared<OperatorsOf>("server_test"));
  return module;
}

constexpr int kThreads = 8;
constexpr int kCalls = 25;

class Server : public testing::Test {
 protected:
  Server() { at::set_num_threads(1); } // a setting of each thread, and products round by it

  static at::Tensor sized(std::int64_t size) {
    at::Tensor x = at::empty({size, kWidth});
    std::mt19937 random(static_cast<unsigned>(size));
    std::generate_n(x.mutable_data_ptr<float>(), x.numel(), [&] { return static_cast<float>(random() % 1000) / 500; });
    return x.to(kDevice);
  }
};

TEST_F(Server, CallsThatRaiseLeaveTheOthersRight) {
  torch::jit::Module module = make(6, R"(
def forward(self, x, wrong: bool):
  x = torch.relu(torch.linear(x, self.w0))
  x = torch.relu(torch.linear(x, self.w1))
  assert not wrong, "wrong on purpose"
  for i in range(2):
    x = torch.tanh(torch.linear(torch.linear(x, self.w2), self.w3) + torch.linear(torch.linear(x, self.w4), self.w5))
  return x
)");
  Options options = options_for(budget(2, 3));
  options.concurrency = 3;
  Pair pair(module, options);
  std::map<std::int64_t, at::Tensor> expected;
  for (std::int64_t size = 1; size <= 40; ++size) {
    expected[size] = pair.reference.run("forward", {sized(size), false}).toTensor();
  }
  std::atomic<int> wrong = 0;
  std::atomic<int> raised = 0;
  in_parallel(kThreads, [&](int thread) {
    at::set_num_threads(1);
    std::mt19937 random(thread);
    for (int call = 0; call < kCalls; ++call) {
      const std::int64_t size = 1 + random() % 40;
      const bool raises = random() % 10 == 0;
      try {
        const at::Tensor output = pair.offloaded.forward({sized(size), raises}).toTensor();
        wrong += !raises && output.equal(expected.at(size)) ? 0 : 1;
      } catch (const std::exception& error) {
        const bool meant = raises && std::string(error.what()).find("wrong on purpose") != std::string::npos;
        wrong += meant ? 0 : 1;
        ++raised;
      }
    }
  });
  EXPECT_EQ(wrong, 0);
  EXPECT_GT(raised, 0);
  EXPECT_EQ(pair.offloaded.stats().calls, kThreads * kCalls - raised);
}

TEST_F(Server, CallsThatWriteStateAreEachMadeOnce) {
  torch::jit::Module module = make(4, R"(
def forward(self, x):
  self.calls += 1
  self.sums.add_(x.sum(0))
  x = torch.relu(torch.linear(torch.linear(x, self.w0), self.w1))
  return torch.linear(torch.linear(x, self.w2), self.w3), self.calls
)",
                                   at::kFloat, [](torch::jit::Module& with) {
                                     with.register_attribute("calls", c10::IntType::get(), 0);
                                     with.register_buffer("sums", at::zeros({kWidth}));
                                   });
  Reference reference(module.deepcopy(), kDevice);
  Module offloaded = wrap(module.deepcopy(), options_for(budget(2)));
  std::map<std::int64_t, at::Tensor> expected;
  for (std::int64_t size = 1; size <= 40; ++size) {
    expected[size] = reference.run("forward", {sized(size)}).toTupleRef().elements()[0].toTensor();
  }
  std::atomic<int> wrong = 0;
  std::mutex mutex;
  std::set<std::int64_t> counts;
  in_parallel(kThreads, [&](int thread) {
    at::set_num_threads(1);
    std::mt19937 random(thread);
    for (int call = 0; call < kCalls; ++call) {
      const std::int64_t size = 1 + random() % 40;
      const c10::IValue output = offloaded.forward({sized(size)});
      wrong += output.toTupleRef().elements()[0].toTensor().equal(expected.at(size)) ? 0 : 1;
      const std::lock_guard lock(mutex);
      counts.insert(output.toTupleRef().elements()[1].toInt());
    }
  });
  EXPECT_EQ(wrong, 0);
  EXPECT_EQ(counts.size(), kThreads * kCalls) << "no call was counted twice";
  EXPECT_EQ(*counts.rbegin(), kThreads * kCalls);
  EXPECT_EQ(offloaded.attr("calls").toInt(), kThreads * kCalls);
}

/// By default it is planned for as many callers as there are, and for one again when the others have gone.
TEST_F(Server, IsPlannedForThoseWhoCall) {
  const torch::jit::Module module = make(6, chain(6));
  Options options = options_for(budget(2));
  options.concurrency.reset();
  Pair pair(module, options);
  const at::Tensor input = rows();
  const at::Tensor expected = pair.reference.run("forward", {input}).toTensor();
  pair.expect_same({input}); // and leaves room for so many weights
  EXPECT_EQ(pair.offloaded.placement().predicted.round.callers, 1);
  std::atomic<int> wrong = 0;
  std::atomic<int> most = 0;
  in_parallel(kThreads, [&](int) {
    for (int call = 0; call < kCalls; ++call) {
      wrong += pair.offloaded.forward({input}).toTensor().equal(expected) ? 0 : 1;
      most = std::max(most.load(), pair.offloaded.placement().predicted.round.callers);
    }
  });
  EXPECT_EQ(wrong, 0);
  EXPECT_GT(most, 1);
  for (int call = 0; call < 600; ++call) {
    pair.offloaded.forward({input});
  }
  EXPECT_EQ(pair.offloaded.placement().predicted.round.callers, 1);
}

TEST_F(Server, QuestionsWaitForNoCallAndHoldNoneUp) {
  const torch::jit::Module module = holding_module();
  Options options = options_for(budget(4, 2));
  options.concurrency = 2;
  Module offloaded = wrap(module.deepcopy(), options);
  const at::Tensor first = offloaded.forward({rows(), false}).toTensor();
  latch.hold();
  std::thread never_ends([&] { offloaded.forward({rows(), true}); });
  latch.await_reached();
  EXPECT_GT(offloaded.placement().budget.minimum, 0);
  EXPECT_EQ(offloaded.stats().calls, 1);
  EXPECT_TRUE(offloaded.attr("w2").toTensor().equal(module.attr("w2").toTensor()));
  EXPECT_TRUE(offloaded.attr("little").toTensor().equal(module.attr("little").toTensor()));
  offloaded.forward({rows(), false}); // on the other lane
  latch.open();
  never_ends.join();
  EXPECT_EQ(offloaded.stats().calls, 3);
}

TEST_F(Server, ANewBudgetGoesBeforeCallersThatWait) {
  const torch::jit::Module module = holding_module();
  Module offloaded = wrap(module.deepcopy(), options_for(budget(4)));
  offloaded.forward({rows(), false});
  latch.hold();
  std::thread in_flight([&] { offloaded.forward({rows(), true}); });
  latch.await_reached();
  const std::uint64_t least = offloaded.placement().budget.minimum;
  std::uint64_t seen = 0;
  BlockedThread waits([&] {
    offloaded.forward({rows(), false});
    seen = offloaded.placement().budget.vram;
  });
  waits.await_blocked();
  BlockedThread budgets([&] { offloaded.set_vram_budget(least); });
  budgets.await_blocked();
  latch.open();
  in_flight.join();
  waits.join();
  budgets.join();
  EXPECT_EQ(seen, least) << "the call waited before the budget came, and went first";
}

TEST_F(Server, ARefusedBudgetIsSeenByNobody) {
  const std::uint64_t given = budget(3);
  Module offloaded = wrap(holding_module(), options_for(given));
  offloaded.forward({rows(), false}); // what calls take on a GPU is an assumption before, and refuses nothing
  const Budget known = offloaded.placement().budget;
  ASSERT_THROW(offloaded.set_vram_budget(known.minimum / 2), BudgetError);
  std::atomic<bool> asked = false;
  std::atomic<int> refused = 0;
  std::thread refusals([&] {
    while (!asked) {
      try {
        offloaded.set_vram_budget(known.minimum / 2);
      } catch (const BudgetError&) {
        ++refused;
      }
    }
  });
  std::set<std::uint64_t> budgets;
  std::set<std::uint64_t> rings;
  for (int i = 0; i < 2000 || refused < 2000; ++i) {
    const Budget seen = offloaded.placement().budget;
    budgets.insert(seen.vram);
    rings.insert(seen.ring);
  }
  asked = true;
  refusals.join();
  EXPECT_EQ(budgets, std::set<std::uint64_t>{given});
  EXPECT_EQ(rings, std::set<std::uint64_t>{known.ring});
}

TEST_F(Server, TheLastHandleWaitsForTheCallsThatWereMadeThroughIt) {
  const torch::jit::Module module = holding_module();
  const at::Tensor x = rows();
  const at::Tensor expected = Reference(module.deepcopy(), kDevice).run("forward", {x, false}).toTensor();
  std::optional<Module> offloaded = wrap(module.deepcopy(), options_for(budget(4)));
  latch.hold();
  at::Tensor output;
  std::thread in_flight([&] {
    at::set_num_threads(1);
    output = offloaded->forward({x, true}).toTensor();
  });
  latch.await_reached();
  BlockedThread ends([&] { offloaded.reset(); });
  ends.await_blocked();
  EXPECT_FALSE(ends.done());
  latch.open();
  in_flight.join();
  ends.join();
  EXPECT_TRUE(output.equal(expected));
}

TEST_F(Server, AHandleIsAssignedToWhileOthersCallThroughIt) {
  const torch::jit::Module module = make(2, chain(2));
  const at::Tensor x = rows();
  const at::Tensor expected = Reference(module.deepcopy(), kDevice).run("forward", {x}).toTensor();
  Module shared = wrap(module.deepcopy(), options_for(budget(1)));
  std::atomic<bool> done = false;
  std::atomic<int> wrong = 0;
  std::vector<std::thread> callers;
  for (int i = 0; i < 4; ++i) {
    callers.emplace_back([&] {
      at::set_num_threads(1);
      while (!done) {
        Module copy = shared;
        wrong += copy.forward({x}).toTensor().equal(expected) ? 0 : 1;
        wrong += shared.forward({x}).toTensor().equal(expected) ? 0 : 1;
        static_cast<void>(shared.placement());
      }
    });
  }
  for (int i = 0; i < 100; ++i) {
    shared = wrap(module.deepcopy(), options_for(budget(1 + i % 2)));
  }
  done = true;
  for (std::thread& caller : callers) {
    caller.join();
  }
  EXPECT_EQ(wrong, 0);
}

TEST_F(Server, AHandleThatWasMovedFromSaysSo) {
  Module offloaded = wrap(make(1, chain(1)), options_for(budget(1)));
  Module moved = std::move(offloaded);
  const std::vector<std::function<void(Module&)>> members = {
      [](Module& module) { module.forward({rows()}); }, [](Module& module) { module.run_method("forward", {rows()}); },
      [](Module& module) { module.attr("w0"); },        [](Module& module) { module.schema("forward"); },
      [](Module& module) { module.device(); },          [](Module& module) { static_cast<void>(module.placement()); },
      [](Module& module) { module.stats(); },           [](Module& module) { module.set_vram_budget(budget(1)); },
      [](Module& module) { module.release(); }};
  for (const auto& member : members) {
    EXPECT_NO_THROW(member(moved));
    try {
      member(offloaded); // NOLINT(bugprone-use-after-move): that is what is tried
      FAIL() << "it has no module";
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find("was moved from"), std::string::npos) << error.what();
    }
  }
  offloaded = moved;
  EXPECT_NO_THROW(offloaded.forward({rows()}));
}

} // namespace
} // namespace offload::test
