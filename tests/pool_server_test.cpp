// What servers do to a pool: calls that raise, files that change, modules that come and go.

#include <ATen/Parallel.h>
#include <gtest/gtest.h>
#include <torch/library.h>

#include <atomic>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include <offload/priority.h>

#include "operators.h"
#include "pools.h"
#include "temporary_file.h"
#include "threads.h"

namespace offload::test {
namespace {

Latch within_a_pool;
std::vector<std::int64_t> order_in_pool; // of calls that have begun

TORCH_LIBRARY(pool_server_test, library) {
  library.def("begin(Tensor x, int call) -> Tensor", [](const at::Tensor& x, std::int64_t call) {
    order_in_pool.push_back(call);
    within_a_pool.pass();
    return x.clone();
  });
}

class PoolServer : public PoolTest {};

TEST_F(PoolServer, ACallThatRaisesConcernsNobodyElse) {
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

TEST_F(PoolServer, TheMostUrgentCallGoesFirstWhateverModuleItIsOf) {
  PoolOptions options;
  options.device = kDevice;
  options.vram_budget = room_for(8);
  options.concurrency = 1;
  const auto pool = std::make_shared<Pool>(options);
  std::vector<Module> modules;
  for (int i = 0; i < 2; ++i) {
    torch::jit::Module module = make(2, "def unused(self, x):\n  return x\n");
    module.define(
        "def forward(self, x, call: int):\n"
        "  return torch.linear(pool_server_test.begin(torch.linear(x, self.w0), call), self.w1)\n",
        std::make_shared<OperatorsOf>("pool_server_test"));
    modules.push_back(wrap(module, in(pool)));
  }
  const at::Tensor x = rows();
  const auto call = [&](Module& module, int number) { module.forward({x, number}); };
  for (Module& module : modules) {
    call(module, 0);
  }
  // A module that is being placed is closed meanwhile.
  ASSERT_TRUE(comes_true([&] { return resident(*pool) >= 4 * kWeightBytes; }));
  order_in_pool.clear();
  within_a_pool.hold();
  BlockedThread first([&] { call(modules[0], 1); });
  within_a_pool.await_reached();
  BlockedThread low([&] {
    const PriorityGuard priority(Priority::low);
    call(modules[0], 2);
  });
  low.await_blocked();
  BlockedThread normal([&] { call(modules[1], 3); });
  normal.await_blocked();
  BlockedThread high([&] {
    const PriorityGuard priority(Priority::high);
    call(modules[1], 4);
  });
  high.await_blocked();
  within_a_pool.open();
  for (BlockedThread* thread : {&first, &low, &normal, &high}) {
    thread->join();
  }
  EXPECT_EQ(order_in_pool, (std::vector<std::int64_t>{1, 4, 3, 2}));
}

TEST_F(PoolServer, AFileThatChangesConcernsItsModuleOnly) {
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

TEST_F(PoolServer, ServesManyThreadsWhileAllElseChanges) {
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

TEST_F(PoolServer, CallsThatHoldTheirWeightsFindRoomBesideEachOther) {
  const auto pool = make_pool(room_for(13));
  const char* const source = R"(
def forward(self, x):
  torch.set_grad_enabled(True)
  x = x.detach().requires_grad_(True)
  y = torch.linear(torch.tanh(torch.linear(x, self.w0)), self.w1)
  y = torch.linear(torch.tanh(torch.linear(torch.tanh(y), self.w2)), self.w3)
  gradient = torch.autograd.grad([y.sum()], [x])[0]
  torch.set_grad_enabled(False)
  assert gradient is not None
  return gradient
)";
  Pooled first(make(4, source), in(pool));
  Pooled second(make(4, source), in(pool));
  in_parallel(4, [&](int thread) {
    at::set_num_threads(1);
    for (int i = 0; i < 10; ++i) {
      (thread % 2 == 0 ? first : second).expect_same();
      first.offloaded.release();
    }
  });
}

} // namespace
} // namespace offload::test
