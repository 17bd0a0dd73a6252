// One budget for several modules.

#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>
#include <torch/library.h>

#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "operators.h"
#include "pools.h"

namespace offload::test {
namespace {

std::function<void()> pool_question;

TORCH_LIBRARY(pool_test, library) {
  library.def("ask(Tensor x) -> Tensor", [](const at::Tensor& x) {
    if (pool_question) {
      pool_question();
    }
    return x.clone();
  });
}

TEST_F(PoolTest, ModulesShareABudgetThatHoldsHalfOfThem) {
  const auto pool = make_pool(room_for(9));
  std::vector<std::unique_ptr<Pooled>> modules;
  for (int i = 0; i < 3; ++i) {
    modules.push_back(std::make_unique<Pooled>(make(kPerModule, chain(kPerModule)), in(pool)));
  }
  for (int round = 0; round < 5; ++round) {
    for (const auto& module : modules) {
      module->expect_same();
      EXPECT_LE(resident(*pool), room_for(9));
    }
  }
  EXPECT_TRUE(comes_true([&] { return resident(*pool) >= 4 * kWeightBytes; })) << resident(*pool);
  const Stats stats = pool->stats();
  EXPECT_EQ(stats.calls, 15U);
  EXPECT_GT(stats.bytes_streamed, 0U);
  EXPECT_EQ(pool->entries().size(), 3U);
  EXPECT_EQ(pool->entries()[0].name, "Model");
  EXPECT_EQ(pool->entries()[0].calls, 5U);
  EXPECT_EQ(pool->entries()[0].weight_bytes, kModuleBytes);
  modules.erase(modules.begin());
  EXPECT_EQ(pool->entries().size(), 2U);
  for (const auto& module : modules) {
    module->expect_same();
  }
  EXPECT_EQ(pool->stats().calls, 12U) << "of those that are there";
}

TEST_F(PoolTest, WhatIsCalledBecomesResidentInThePlaceOfWhatIsNot) {
  const auto pool = make_pool(room_for(9));
  Pooled first(make(kPerModule, chain(kPerModule)), in(pool));
  const auto is_resident = [&](std::size_t i) { return pool->entries()[i].resident_bytes >= kModuleBytes; };
  call(first, 3);
  EXPECT_TRUE(comes_true([&] { return is_resident(0); }));
  const std::uint64_t streamed = first.offloaded.stats().bytes_streamed;
  call(first, 3);
  EXPECT_EQ(first.offloaded.stats().bytes_streamed, streamed) << "nothing of it streams any more";
  Pooled second(make(kPerModule, chain(kPerModule)), in(pool));
  EXPECT_TRUE(comes_true([&] {
    call(second, 5);
    return is_resident(1);
  })) << told(*pool);
  EXPECT_FALSE(is_resident(0));
  call(first, 1);
  call(second, 1);
}

/// What calls lease is known, though all was there before the first of them.
TEST_F(PoolTest, WhatIsResidentBeforeItsFirstCallIsPlannedLikeTheRest) {
  const auto pool = make_pool(room_for(20));
  Pooled module(make(kPerModule, chain(kPerModule)), in(pool));
  EXPECT_TRUE(comes_true([&] { return resident(*pool) >= kModuleBytes; }));
  call(module, 2);
  EXPECT_EQ(module.offloaded.stats().bytes_streamed, 0U);
  EXPECT_EQ(module.offloaded.placement().budget.reserve_by, Evidence::calls);
  pool->set_vram_budget(room_for(3));
  call(module, 1);
  const std::uint64_t before = module.offloaded.stats().bytes_streamed;
  EXPECT_GT(before, 0U);
  EXPECT_TRUE(comes_true([&] { return module.offloaded.placement().predicted.streamed_bytes > 0; }));
}

/// Nothing is brought twice, and no more goes than has to.
TEST_F(PoolTest, ResidencyGrowsAndShrinksByParts) {
  const auto pool = make_pool(room_for(5));
  Pooled module(make(kPerModule, chain(kPerModule)), in(pool));
  const std::uint64_t some = 2 * kScale * kWeightBytes;
  EXPECT_TRUE(comes_true([&] { return resident(*pool) >= some; }));
  call(module, 2);
  const std::uint64_t first = resident(*pool);
  EXPECT_LT(first, kModuleBytes);
  pool->set_vram_budget(room_for(20));
  std::uint64_t least = first;
  EXPECT_TRUE(comes_true([&] {
    least = std::min(least, resident(*pool));
    return resident(*pool) >= kModuleBytes;
  }));
  EXPECT_EQ(least, first);
  call(module, 1);
  pool->set_vram_budget(room_for(5));
  EXPECT_GE(resident(*pool), some);
  EXPECT_LT(resident(*pool), kModuleBytes);
  call(module, 2);
}

TEST_F(PoolTest, WhatIsReleasedComesBackWithItsNextCall) {
  const auto pool = make_pool(room_for(std::uint64_t{4} * kPerModule));
  Pooled module(make(kPerModule, chain(kPerModule)), in(pool));
  const auto is_resident = [&] { return resident(*pool) >= kModuleBytes; };
  EXPECT_TRUE(comes_true(is_resident)) << "there is room, though nobody has called it";
  for (int round = 0; round < 2; ++round) {
    module.offloaded.release();
    EXPECT_EQ(resident(*pool), 0U);
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    EXPECT_EQ(resident(*pool), 0U);
    call(module, 1);
    EXPECT_TRUE(comes_true(is_resident));
    EXPECT_GT(pool->entries()[0].wake_seconds, 0);
    EXPECT_LT(pool->entries()[0].idle_seconds, 30);
  }
}

TEST_F(PoolTest, ABudgetIsKeptWhateverItBecomes) {
  const auto pool = make_pool(room_for(20));
  Pooled first(make(kPerModule, chain(kPerModule)), in(pool));
  Pooled second(make(kPerModule, chain(kPerModule)), in(pool));
  EXPECT_TRUE(comes_true([&] { return resident(*pool) >= 2 * kModuleBytes; }));
  pool->set_vram_budget(room_for(5));
  EXPECT_EQ(pool->vram_budget(), room_for(5));
  EXPECT_LE(resident(*pool), room_for(5));
  call(first, 2);
  call(second, 2);
  try {
    pool->set_vram_budget(4096);
    FAIL() << "not even the ring fits";
  } catch (const BudgetError& error) {
    EXPECT_GT(error.minimum_bytes(), 4096U);
    EXPECT_EQ(pool->vram_budget(), room_for(5));
    EXPECT_NO_THROW(pool->set_vram_budget(error.minimum_bytes())) << "what it names works";
  }
  call(first, 2);
  call(second, 2);
  EXPECT_LE(resident(*pool), pool->vram_budget());
  pool->set_vram_budget(room_for(20));
  EXPECT_TRUE(comes_true([&] { return resident(*pool) >= 2 * kModuleBytes; }));
  call(first, 2);
}

TEST_F(PoolTest, AModuleMayBeKeptToAShare) {
  const auto pool = make_pool(room_for(20));
  Options options = in(pool);
  options.vram_budget = 2 * kWeightBytes;
  Pooled module(make(kPerModule, chain(kPerModule)), options);
  EXPECT_TRUE(comes_true([&] { return resident(*pool) > 0; }));
  call(module, 5);
  EXPECT_LE(resident(*pool), 2 * kWeightBytes + (kDevice.is_cuda() ? 2_MiB : 0));
  module.offloaded.set_vram_budget(kModuleBytes);
  EXPECT_TRUE(comes_true([&] {
    call(module, 1);
    return resident(*pool) >= kModuleBytes;
  }));
  module.offloaded.set_vram_budget(kWeightBytes);
  EXPECT_LE(resident(*pool), kWeightBytes + (kDevice.is_cuda() ? 2_MiB : 0));
  call(module, 1);
}

/// A model that does not fit says what would do, and leaves the others as they are.
TEST_F(PoolTest, WhatDoesNotFitIsRefused) {
  const auto pool = make_pool(room_for(2));
  Pooled small(make(2, chain(2)), in(pool));
  torch::jit::Module large("Large");
  large.register_parameter("w", at::randn({4096, 32768}), false); // 512 MiB in one step
  large.define("def forward(self, x):\n  return torch.matmul(x, self.w)\n");
  try {
    wrap(large.deepcopy(), in(pool));
    FAIL() << "its only step does not fit";
  } catch (const BudgetError& error) {
    EXPECT_NE(std::string(error.what()).find("of the pool is too small for Large"), std::string::npos) << error.what();
    EXPECT_GE(error.minimum_bytes(), 512_MiB);
  }
  EXPECT_EQ(pool->entries().size(), 1U);
  small.expect_same();

  const auto refuse = [&](const std::function<void(Options&)>& change) {
    Options options = in(pool);
    change(options);
    EXPECT_THROW(wrap(make(2, chain(2)), options), InputError);
  };
  refuse([](Options& options) { options.concurrency = 2; });
  refuse([](Options& options) { options.host_budget = 1_GiB; });
  refuse([](Options& options) { options.weight = 0; });
  refuse([](Options& options) { options.rule = Rule::spread; });
  refuse([](Options& options) { options.device = c10::Device(kDevice.is_cpu() ? c10::kCUDA : c10::kCPU); });
  torch::jit::Module counts =
      make(2, "def forward(self, x):\n  self.total.add_(1)\n  return torch.linear(x, self.w0)\n", at::kFloat,
           [](torch::jit::Module& module) { module.register_buffer("total", at::zeros({4})); });
  EXPECT_THROW(wrap(counts, in(pool)), InputError) << "it writes its state";
  EXPECT_EQ(pool->entries().size(), 1U);
  small.expect_same();
}

TEST_F(PoolTest, WhatWouldWaitForACallOfThePoolIsRefused) {
  const auto pool = make_pool(room_for(20));
  torch::jit::Module asking = make(2, "def unused(self, x):\n  return x\n");
  asking.define("def forward(self, x):\n  return torch.linear(pool_test.ask(torch.linear(x, self.w0)), self.w1)\n",
                std::make_shared<OperatorsOf>("pool_test"));
  Module outer = wrap(asking, in(pool));
  Pooled other(make(2, chain(2)), in(pool));
  Module apart = wrap(make(2, chain(2)), options_for(budget(4)));
  int asked = 0;
  pool_question = [&] {
    ++asked;
    EXPECT_THROW(other.offloaded.forward({rows()}), Error);
    EXPECT_THROW(wrap(make(1, chain(1)), in(pool)), Error);
    EXPECT_THROW(outer.release(), Error);
    EXPECT_THROW(outer.set_vram_budget(kWeightBytes), Error);
    EXPECT_THROW(pool->set_vram_budget(room_for(10)), Error);
    EXPECT_NO_THROW(apart.forward({rows()}));
    EXPECT_EQ(pool->entries().size(), 2U);
    EXPECT_EQ(pool->stats().calls, 0U);
  };
  outer.forward({rows()});
  pool_question = nullptr;
  EXPECT_EQ(asked, 1);
  other.expect_same();
}

/// Calls of many threads while modules come and go, and the budget changes.
/// Modules whose calls hold weights until they end do so at the same time.
TEST_F(PoolTest, EndsWithItsLastModule) {
  auto pool = make_pool(room_for(10));
  Pooled module(make(kPerModule, chain(kPerModule)), in(pool));
  pool.reset();
  call(module, 2);
  Options options = in(make_pool(room_for(10)));
  options.example_calls.push_back({"forward", {rows()}, {}});
  Pooled another(make(kPerModule, chain(kPerModule)), options);
  EXPECT_EQ(another.offloaded.stats().calls, 1U) << "the example";
  call(another, 2);
  call(module, 2);
}

} // namespace
} // namespace offload::test
