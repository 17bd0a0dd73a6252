// What users see of offload::Module. Linked twice: for the host, and for the first GPU.

#include <ATen/ops/linear.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/randn.h>

#include <algorithm>
#include <atomic>
#include <sstream>
#include <thread>

#include "modules.h"

namespace offload::test {
namespace {

TEST(Module, IsBitIdenticalAtEveryBudgetAndMovesWhatThePlanSays) {
  // On a GPU the reserve is measured, and what it leaves goes to weights: it takes more of them until something
  // streams.
  const int count = kDevice.is_cuda() ? 64 : 8;
  const torch::jit::Module module = make(count, chain(count));
  for (const std::uint64_t weights : {1, 2, 4, 7, 16}) {
    Pair pair(module, options_for(budget(weights * (weights == 16 ? count / 8 : 1))));
    for (int call = 0; call < 4; ++call) {
      pair.expect_same({rows()});
    }
    const Stats before = pair.offloaded.stats();
    constexpr int kCalls = 5;
    for (int call = 0; call < kCalls; ++call) {
      pair.expect_same({rows()});
    }
    const Stats after = pair.offloaded.stats();
    const Placement placement = pair.offloaded.placement();
    const std::uint64_t moved =
        (after.bytes_streamed - after.bytes_ahead) - (before.bytes_streamed - before.bytes_ahead);
    EXPECT_EQ(moved, kCalls * placement.predicted.streamed_bytes) << placement;
    EXPECT_EQ(after.misses, before.misses);
    EXPECT_LE(after.peak_device_bytes, placement.budget.vram);
    if (weights == 16) {
      EXPECT_EQ(placement.predicted.streamed_bytes, 0U);
    } else {
      EXPECT_GT(moved, 0U);
      const Budget& b = placement.budget;
      EXPECT_LE(b.fixed + b.resident + b.ring + b.reserve, b.vram);
      EXPECT_GE(b.fixed + b.resident + b.ring + b.reserve + (kDevice.is_cuda() ? 2_MiB : 64_KiB), b.vram);
    }
  }
}

TEST(Module, TheMinimumOfABudgetErrorIsExact) {
  const torch::jit::Module module = make(4, chain(4));
  std::uint64_t minimum = 0;
  try {
    wrap(module.deepcopy(), options_for(1));
    FAIL() << "a budget of one byte did";
  } catch (const BudgetError& error) {
    minimum = error.minimum_bytes();
  }
  EXPECT_THROW(wrap(module.deepcopy(), options_for(minimum - assumed() - 1)), BudgetError);
  Pair pair(module, options_for(minimum));
  pair.expect_same({rows()});
  pair.expect_same({rows()});
  EXPECT_GT(pair.offloaded.stats().bytes_streamed, 0U);
}

TEST(Module, EveryDtypeAndRank) {
  for (const at::ScalarType dtype : {at::kDouble, at::kFloat, at::kBFloat16, at::kHalf}) {
    Pair pair(make(3, chain(3), dtype), options_for(budget(dtype == at::kDouble ? 4 : 2)));
    for (const std::vector<std::int64_t>& lead :
         std::vector<std::vector<std::int64_t>>{{}, {1}, {5}, {2, 3}, {2, 1, 3}, {0}}) {
      std::vector<std::int64_t> sizes = lead;
      sizes.push_back(kWidth);
      pair.expect_same({at::randn(sizes).to(dtype).to(kDevice)});
    }
  }
}

TEST(Module, IntegerWeightsAndOtherOperatorsStreamToo) {
  torch::jit::Module module("Model");
  module.register_parameter("kernel", at::randn({64, 64, 3, 3}), false);
  module.register_buffer("table", at::randint(0, 100, {512, 512}, at::kLong));
  module.register_buffer("bytes", at::randint(0, 100, {512, 512}, at::kByte));
  module.define(R"(
def forward(self, x):
  y = torch.conv2d(x, self.kernel, None, [1, 1], [1, 1], [1, 1], 1)
  return y, self.table + 1, self.bytes.to(3).sum(1)
)");
  Pair pair(module, options_for(budget(2)));
  for (int call = 0; call < 3; ++call) {
    pair.expect_same({at::randn({2, 64, 8, 8}).to(kDevice)});
  }
  EXPECT_GT(pair.offloaded.stats().bytes_streamed, 0U);
}

TEST(Module, TiedWeightsViewsAndEmbeddings) {
  torch::jit::Module module("Model");
  const at::Tensor base = at::randn({3 * kWidth, kWidth}).mul(1.0 / 23);
  module.register_parameter("q", base.slice(0, 0, kWidth), false);
  module.register_parameter("k", base.slice(0, kWidth, 2 * kWidth), false);
  module.register_parameter("kv", base.slice(0, kWidth, 3 * kWidth), false);
  module.register_parameter("table", at::randn({1000, kWidth}), false);
  module.setattr("q", base.slice(0, 0, kWidth));
  module.define(R"(
def forward(self, ids):
  x = torch.embedding(self.table, ids)
  x = torch.matmul(x, self.q.t())
  k, v = torch.chunk(self.kv, 2, 0)
  x = x + torch.linear(x, self.k) + torch.linear(x, k) + torch.matmul(x, v.transpose(0, 1))
  return torch.linear(x, self.table)
)");
  Pair pair(module, options_for(budget(3)));
  for (int call = 0; call < 3; ++call) {
    pair.expect_same({at::randint(0, 1000, {2, 7}, at::kLong).to(kDevice)});
  }
  EXPECT_GT(pair.offloaded.stats().bytes_streamed, 0U);
}

TEST(Module, BranchesLoopsAndEarlyReturnsByData) {
  Pair pair(make(4, R"(
def forward(self, x, n: int):
  for i in range(n):
    if bool(x.sum() > 0):
      x = torch.linear(x, self.w0)
    else:
      x = torch.linear(x, self.w1) + torch.linear(x, self.w2)
  if n > 3:
    return x
  return torch.linear(x, self.w3)
)"),
            options_for(budget(2)));
  for (const int n : {2, 0, 5, 1, 4, 3}) {
    pair.expect_same({rows(), n});
  }
}

TEST(Module, ErrorsOfTheModelPassThroughAndLeaveItWorking) {
  Pair pair(make(3, R"(
def forward(self, x, fail: bool):
  x = torch.linear(x, self.w0)
  assert not fail, "no such luck"
  return torch.linear(torch.linear(x, self.w1), self.w2)
)"),
            options_for(budget(1)));
  pair.expect_same({rows(), false});
  for (int call = 0; call < 3; ++call) {
    try {
      pair.offloaded.forward({rows(), true});
      FAIL();
    } catch (const std::exception& error) {
      EXPECT_NE(std::string(error.what()).find("no such luck"), std::string::npos);
    }
    EXPECT_ANY_THROW(pair.offloaded.forward({at::randn({3, 7}).to(kDevice), false})); // sizes that do not fit
    pair.expect_same({rows(), false});
  }
}

TEST(Module, AFlippedBitOfAStreamedWeightShows) {
  const torch::jit::Module module = make(3, chain(3));
  torch::jit::Module flipped = module.deepcopy();
  flipped.attr("w1").toTensor().view(at::kByte)[100][15].bitwise_xor_(1);
  Reference reference(module.deepcopy(), kDevice);
  Module offloaded = wrap(flipped, options_for(budget(1)));
  const at::Tensor x = rows();
  EXPECT_NE(tools::first_difference(offloaded.forward({x}), reference.run("forward", {x})), "");
}

TEST(Module, PlaceholdersOutsideACallAreErrorsThatNameTheWeight) {
  torch::jit::Module module = make(2, chain(2));
  const Module offloaded = wrap(module, options_for(budget(1)));
  try {
    static_cast<void>(at::linear(at::randn({1, kWidth}).to(kDevice), module.attr("w1").toTensor()));
    FAIL();
  } catch (const std::exception& error) {
    EXPECT_NE(std::string(error.what()).find("w1"), std::string::npos) << error.what();
  }
}

TEST(Module, TheBudgetChangesBetweenCalls) {
  Pair pair(make(6, chain(6)), options_for(budget(2)));
  std::uint64_t vram = 0;
  for (const std::uint64_t weights : {2, 8, 1, 4, 8, 3}) {
    leave_room(pair.offloaded, weights);
    vram = pair.offloaded.placement().budget.vram;
    for (int call = 0; call < 3; ++call) {
      pair.expect_same({rows()});
    }
    EXPECT_EQ(pair.offloaded.placement().budget.vram, vram);
  }
  EXPECT_THROW(pair.offloaded.set_vram_budget(1), BudgetError);
  EXPECT_EQ(pair.offloaded.placement().budget.vram, vram);
  pair.expect_same({rows()});
}

TEST(Module, ManyThreadsShareIt) {
  constexpr int kCount = 6;
  const torch::jit::Module module = make(kCount, chain(kCount));
  for (const int lanes : {1, 3}) {
    Options options = options_for(budget(3) * (kDevice.is_cuda() ? 3 : 1));
    options.concurrency = lanes;
    options.example_calls.push_back({"forward", {rows()}, {}});
    Pair pair(module, options);
    std::vector<at::Tensor> inputs;
    std::vector<c10::IValue> expected;
    for (int i = 0; i < 4; ++i) {
      inputs.push_back(rows());
      expected.push_back(pair.reference.run("forward", {inputs.back()}));
    }
    std::vector<std::thread> threads;
    for (int t = 0; t < 6; ++t) {
      threads.emplace_back([&, t] {
        Module copy = pair.offloaded;
        for (int call = 0; call < 10; ++call) {
          const int i = (t + call) % 4;
          EXPECT_EQ(tools::first_difference(copy.forward({inputs[i]}), expected[i]), "");
          if (t == 0 && call % 4 == 1) {
            copy.set_vram_budget(budget(call % 8 == 1 ? 4 : 3) * (kDevice.is_cuda() ? 3 : 1));
          }
        }
      });
    }
    for (std::thread& thread : threads) {
      thread.join();
    }
    EXPECT_EQ(pair.offloaded.stats().calls, 61U);
  }
}

TEST(Module, StatsMayBeAskedWhileTheBudgetChanges) {
  constexpr int kCount = 6;
  Options options = options_for(budget(3));
  options.example_calls.push_back({"forward", {rows()}, {}});
  Module offloaded = wrap(make(kCount, chain(kCount)), options);
  std::atomic<bool> changing = true;
  std::thread owner([&] {
    for (int i = 0; i < 20; ++i) {
      offloaded.set_vram_budget(budget(i % 2 == 0 ? 4 : 3));
      offloaded.forward({rows()});
    }
    changing = false;
  });
  Stats before;
  while (changing) {
    const Stats now = offloaded.stats();
    EXPECT_GE(now.calls, before.calls);
    EXPECT_GE(now.misses, before.misses);
    before = now;
  }
  owner.join();
}

TEST(Module, WhatIsReleasedIsTakenAgainByTheNextCall) {
  for (const std::uint64_t weights : {3, 12}) {
    Pair pair(make(6, chain(6)), options_for(budget(weights)));
    pair.offloaded.release(); // nothing was placed yet
    const std::uint64_t fixed = pair.offloaded.stats().bytes_resident;
    EXPECT_LE(fixed, kDevice.is_cuda() ? 2_MiB : 4096) << "what always stays, in units of the device";
    pair.expect_same({rows()});
    pair.expect_same({rows()});
    const Stats placed = pair.offloaded.stats();
    const std::uint64_t resident = fixed + (weights == 12 ? 6 * kWeightBytes : 0); // or more, by what calls have shown
    EXPECT_GE(placed.bytes_resident, resident);
    for (int round = 0; round < 2; ++round) {
      pair.offloaded.release();
      EXPECT_EQ(pair.offloaded.stats().bytes_resident, fixed);
      EXPECT_EQ(pair.offloaded.stats().calls, placed.calls + static_cast<std::uint64_t>(round));
      EXPECT_TRUE(pair.offloaded.attr("w2").isTensor());
      pair.expect_same({rows()});
      EXPECT_GE(pair.offloaded.stats().bytes_resident, resident);
    }
    pair.offloaded.release();
    pair.offloaded.release();
    pair.offloaded.set_vram_budget(pair.offloaded.placement().budget.vram);
    pair.expect_same({rows()});
  }
}

TEST(Module, ReportsWhatCallsTookBesideWhatWasPlanned) {
  const torch::jit::Module module = make(6, chain(6));
  Pair pair(module, options_for(budget(3)));
  pair.expect_same({rows()});
  pair.offloaded.set_vram_budget(pair.offloaded.placement().budget.vram);
  EXPECT_EQ(pair.offloaded.report().since.calls, 0U);
  EXPECT_EQ(pair.offloaded.report().bytes_per_call(), 0U);
  constexpr std::uint64_t kCalls = 12; // of any period up to 4
  for (std::uint64_t call = 0; call < kCalls; ++call) {
    pair.offloaded.forward({rows()});
  }
  const Report report = pair.offloaded.report();
  EXPECT_EQ(report.since.calls, kCalls);
  EXPECT_EQ(report.calls_in_pass(), 1);
  EXPECT_EQ(report.bytes_per_call(), report.predicted.round.streamed_bytes);
  EXPECT_GT(report.link_share, 0);
  EXPECT_EQ(report.since.wait_door_us, 0);
  EXPECT_EQ(report.since.wait_calls_us, 0);
  EXPECT_GT(report.call_us(), 0);
  EXPECT_LE(report.call_us(), report.seconds * 1e6 / kCalls) << "one call after the other";
  if (kDevice.is_cpu()) { // on a GPU it is an estimate
    EXPECT_LE(report.since.stall_us / kCalls, report.call_us());
  }

  Options all = options_for(budget(8));
  Module resident = wrap(module.deepcopy(), all);
  resident.forward({rows()});
  resident.forward({rows()});
  EXPECT_EQ(resident.report().calls_in_pass(), 0) << "nothing streams";
}

TEST(Module, ReportsWhatWouldHelp) {
  const int count = kDevice.is_cuda() ? 64 : 6;   // what a GPU reserves until a call was measured holds six
  std::string source = "def forward(self, x):\n"; // which takes less than weights take to come, on any device
  for (int i = 0; i < count; ++i) {
    source += "  x = x + self.w" + std::to_string(i) + "[0]\n";
  }
  Pair pair(make(count, source + "  return x\n"), options_for(budget(3)));
  EXPECT_TRUE(pair.offloaded.report().advice.empty()) << "no call has shown anything";
  for (int call = 0; call < 4; ++call) {
    pair.expect_same({rows()});
  }
  const Report report = pair.offloaded.report();
  ASSERT_GT(report.predicted.round.streamed_bytes, 0U);
  std::ostringstream text;
  text << report;
  EXPECT_NE(text.str().find("Calls are bound by "), std::string::npos) << text.str();
  const bool takes_as_predicted = report.deviation.factor == 1;
  EXPECT_EQ(text.str().find(" times as long as predicted") == std::string::npos, takes_as_predicted) << text.str();
  if (!takes_as_predicted || report.bound == Bound::compute || report.bound == Bound::launches) {
    return; // a sanitizer, or others on the machine, slow down what is computed
  }
  const auto all = std::find_if(report.advice.begin(), report.advice.end(), [](const Advice& advice) {
    return advice.change == Change::budget && advice.then.streamed_bytes == 0;
  });
  ASSERT_NE(all, report.advice.end()) << text.str();
  EXPECT_GT(all->gain, 1);
  EXPECT_NE(text.str().find(std::to_string(all->then.vram) + " bytes), where nothing streams"), std::string::npos);
  for (std::size_t i = 1; i < report.advice.size(); ++i) {
    EXPECT_GE(report.advice[i - 1].gain, report.advice[i].gain) << text.str();
  }

  pair.offloaded.set_vram_budget(all->then.vram);
  EXPECT_DOUBLE_EQ(pair.offloaded.placement().predicted.round.time_us, all->then.time_us);
  for (int call = 0; call < 4; ++call) {
    pair.expect_same({rows()});
  }
  const Report resident = pair.offloaded.report();
  EXPECT_EQ(resident.since.bytes_streamed, 0U) << "the budget that was advised holds all";
  EXPECT_TRUE(std::none_of(resident.advice.begin(), resident.advice.end(),
                           [](const Advice& advice) { return advice.change != Change::rows; }));
}

TEST(Module, MayBeReleasedWhileOthersCall) {
  Options options = options_for(budget(3, 2));
  options.concurrency = 2;
  Pair pair(make(6, chain(6)), options);
  const at::Tensor x = rows();
  const c10::IValue expected = pair.reference.run("forward", {x});
  std::atomic<int> callers = 3;
  std::vector<std::thread> threads;
  for (int t = callers; t > 0; --t) {
    threads.emplace_back([&] {
      for (int call = 0; call < 20; ++call) {
        EXPECT_EQ(tools::first_difference(pair.offloaded.forward({x}), expected), "");
      }
      --callers;
    });
  }
  while (callers > 0) {
    pair.offloaded.release();
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  EXPECT_EQ(pair.offloaded.stats().calls, 60U);
}

TEST(Module, DestroyedWithWorkInFlight) {
  const torch::jit::Module module = make(6, chain(6));
  const at::Tensor x = rows();
  const at::Tensor expected = Reference(module.deepcopy(), kDevice).run("forward", {x}).toTensor();
  for (int round = 0; round < 5; ++round) {
    at::Tensor output;
    {
      Module offloaded = wrap(module.deepcopy(), options_for(budget(2)));
      offloaded.forward({x});
      output = offloaded.forward({x}).toTensor(); // prefetch for a next call is under way
    }
    EXPECT_TRUE(output.equal(expected)) << "memory of the module was in it";
  }
}

} // namespace
} // namespace offload::test
