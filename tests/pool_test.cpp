// One budget for several modules.

#include <ATen/Parallel.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>
#include <torch/library.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include <offload/pool.h>

#include "modules.h"
#include "operators.h"
#include "temporary_file.h"
#include "threads.h"

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

constexpr int kPerModule = 6; // of each module
constexpr std::uint64_t kModuleBytes = kPerModule * kWeightBytes;

/// A module of a pool, and the same wholly on the device.
struct Pooled {
  Pooled(const torch::jit::Module& module, const Options& options)
      : reference(module.deepcopy(), kDevice), offloaded(wrap(module.deepcopy(), options)) {}

  void expect_same(std::int64_t size = 3) {
    const at::Tensor x = rows(size);
    const c10::IValue output = offloaded.forward({x});
    const std::lock_guard lock(mutex); // a reference is one thread's
    EXPECT_EQ(tools::first_difference(output, reference.run("forward", {x})), "");
  }

  std::mutex mutex;
  Reference reference;
  Module offloaded;
};

class PoolTest : public testing::Test {
 protected:
  PoolTest() { at::set_num_threads(1); } // products round by it
  ~PoolTest() override { pool_question = nullptr; }

  /// Room for so many weights beside a ring and calls.
  static std::uint64_t room_for(std::uint64_t weights) {
    return weights * kWeightBytes + (kDevice.is_cuda() ? 320_MiB : 0);
  }

  static std::shared_ptr<Pool> make_pool(std::uint64_t vram) {
    PoolOptions options;
    options.device = kDevice;
    options.vram_budget = vram;
    options.concurrency = 4;
    return std::make_shared<Pool>(options);
  }

  static Options in(const std::shared_ptr<Pool>& pool) {
    Options options;
    options.pool = pool;
    return options;
  }

  /// Waits for what the pool does beside calls.
  static bool comes_true(const std::function<bool()>& condition) {
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(30);
    while (std::chrono::steady_clock::now() < end) {
      if (condition()) {
        return true;
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    return false;
  }

  static std::uint64_t resident(const Pool& pool) {
    std::uint64_t bytes = 0;
    for (const PoolEntry& entry : pool.entries()) {
      bytes += entry.resident_bytes;
    }
    return bytes;
  }

  /// Unless the pool says so, calls have nothing to do with each other.
  static void call(Pooled& module, int times) {
    for (int i = 0; i < times; ++i) {
      module.expect_same();
    }
  }
};

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
  }));
  EXPECT_FALSE(is_resident(0));
  call(first, 1);
  call(second, 1);
}

TEST_F(PoolTest, WhatIsReleasedComesBackWithItsNextCall) {
  const auto pool = make_pool(room_for(4 * kPerModule));
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
    EXPECT_NO_THROW(apart.forward({rows()}));
    EXPECT_EQ(pool->entries().size(), 2U);
    EXPECT_EQ(pool->stats().calls, 0U);
  };
  outer.forward({rows()});
  EXPECT_EQ(asked, 1);
  other.expect_same();
}

TEST_F(PoolTest, ACallThatRaisesConcernsNobodyElse) {
  const auto pool = make_pool(room_for(5));
  torch::jit::Module raising = make(kPerModule, R"(
def forward(self, x):
  return torch.linear(torch.linear(x, self.w0, self.little), self.w1, self.little)

def raise_(self, x):
  x = torch.linear(x, self.w0, self.little)
  assert x.numel() == 0, "on purpose"
  return torch.linear(x, self.w1, self.little)
)");
  Pooled some(raising, in(pool));
  Pooled other(make(kPerModule, chain(kPerModule)), in(pool));
  in_parallel(4, [&](int thread) {
    at::set_num_threads(1);
    for (int i = 0; i < 20; ++i) {
      if (thread % 2 == 0) {
        other.expect_same();
      } else if (i % 3 == 0) {
        EXPECT_THROW(some.offloaded.run_method("raise_", {rows()}), std::exception);
      } else {
        some.expect_same();
      }
    }
  });
}

TEST_F(PoolTest, AFileThatChangesConcernsItsModuleOnly) {
  const auto pool = make_pool(room_for(5));
  const torch::jit::Module module = make(kPerModule, chain(kPerModule));
  const TemporaryFile files[2];
  std::vector<Module> loaded;
  for (const TemporaryFile& file : files) {
    module.save(file.path());
    loaded.push_back(load(file.path(), in(pool)));
  }
  EXPECT_NE(pool->entries()[0].name.find("offload-test-"), std::string::npos);
  Reference reference(module.deepcopy(), kDevice);
  const at::Tensor x = rows();
  const c10::IValue expected = reference.run("forward", {x});
  for (Module& each : loaded) {
    EXPECT_EQ(tools::first_difference(each.forward({x}), expected), "");
  }
  if (kDevice.is_cpu()) { // for a GPU it has been read
    loaded[0].release();
    files[0].write("another");
    EXPECT_THROW(loaded[0].forward({x}), ArchiveError);
  }
  EXPECT_EQ(tools::first_difference(loaded[1].forward({x}), expected), "");
  loaded.erase(loaded.begin());
  EXPECT_EQ(tools::first_difference(loaded[0].forward({x}), expected), "");
}

/// Calls of many threads while modules come and go, and the budget changes.
TEST_F(PoolTest, ServesManyThreadsWhileAllElseChanges) {
  const auto pool = make_pool(room_for(14));
  std::vector<std::unique_ptr<Pooled>> modules;
  for (int i = 0; i < 4; ++i) {
    modules.push_back(std::make_unique<Pooled>(make(2 + 2 * i, chain(2 + 2 * i)), in(pool)));
  }
  std::atomic<int> callers = 6;
  std::vector<std::thread> threads;
  for (int thread = callers; thread > 0; --thread) {
    threads.emplace_back([&, thread] {
      at::set_num_threads(1);
      std::mt19937 random(static_cast<unsigned>(thread));
      std::discrete_distribution<std::size_t> zipf({12, 6, 4, 3});
      for (int i = 0; i < 60; ++i) {
        modules[zipf(random)]->expect_same(1 + static_cast<std::int64_t>(random() % 5));
      }
      --callers;
    });
  }
  threads.emplace_back([&] {
    at::set_num_threads(1);
    for (std::uint64_t weights = 8; callers > 0; weights = 8 + weights * 7 % 13) {
      pool->set_vram_budget(room_for(weights));
      EXPECT_LE(resident(*pool), room_for(weights));
    }
  });
  while (callers > 0) {
    Pooled guest(make(3, chain(3)), in(pool));
    guest.expect_same();
    modules.back()->offloaded.release();
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  EXPECT_EQ(pool->entries().size(), 4U);
  std::uint64_t calls = 0;
  for (const PoolEntry& entry : pool->entries()) {
    calls += entry.calls;
  }
  EXPECT_EQ(calls, 360U);
}

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
