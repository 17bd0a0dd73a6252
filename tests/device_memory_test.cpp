// Memory of calls on a GPU: whoever runs short of it, no call gets other bits, and nobody else is kept from his.

#include <ATen/Context.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/zeros.h>
#include <c10/core/InferenceMode.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAFunctions.h>
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <iostream>
#include <thread>

#include <offload/graph/reference.h>
#include <tools/compare.h>

#include "on_device.h"

namespace offload {
namespace {

std::uint64_t driver_bytes() {
  std::size_t free = 0;
  std::size_t total = 0;
  c10::cuda::device_synchronize();
  c10::cuda::CUDACachingAllocator::emptyCache();
  EXPECT_EQ(cudaMemGetInfo(&free, &total), cudaSuccess);
  return total - free;
}

/// Upsampling by transposed convolutions with few rows and large kernels: cuDNN has many plans for them, which want
/// workspaces of very different sizes and give different bits.
torch::jit::Module vocoder() {
  torch::jit::Module module("Vocoder");
  const auto weight = [&](const char* name, at::IntArrayRef sizes) {
    module.register_parameter(name, at::randn(sizes).mul(0.05), false);
  };
  weight("pre", {256, 80, 7});
  weight("up0", {256, 128, 16});
  weight("up1", {128, 64, 16});
  weight("deep0", {128, 128, 7});
  weight("deep1", {64, 64, 7});
  weight("wide", {512, 64});
  weight("post", {1, 512, 7});
  module.define(R"(
def forward(self, x):
  x = torch.conv1d(x, self.pre, padding=[3])
  x = torch.conv_transpose1d(torch.leaky_relu(x, 0.1), self.up0, stride=[8], padding=[4])
  x = x + torch.conv1d(x, self.deep0, padding=[9], dilation=[3])
  x = torch.conv_transpose1d(torch.leaky_relu(x, 0.1), self.up1, stride=[8], padding=[4])
  x = x + torch.conv1d(x, self.deep1, padding=[9], dilation=[3])
  x = torch.linear(x.transpose(1, 2), self.wide).transpose(1, 2)
  return torch.tanh(torch.conv1d(x, self.post, padding=[3]))
)");
  return module;
}

TEST(DeviceMemory, ACallThatFindsNoRoomFromAnyAllocationOnIsMadeAgainWithTheSameBits) {
  const torch::jit::Module module = vocoder();
  Reference plain(module.deepcopy(), kCuda);
  OwnSession session = make_session(module, 1_GiB);
  session.run_method("forward", {at::randn({1, 80, 8}).to(kCuda)}, {});
  int stopped = 0;
  std::int64_t length = 9; // a shape that neither has met: cuDNN chooses a plan for it in our call
  for (std::uint64_t n = 1;; ++n, ++length) {
    const at::Tensor input = at::randn({1, 80, length}).to(kCuda);
    const std::uint64_t before = session.stats().calls_repeated;
    session.refuse_from(n);
    const c10::IValue output = session.run_method("forward", {input}, {});
    const c10::IValue expected = plain.run("forward", {input});
    ASSERT_EQ(tools::first_difference(output, expected), "") << "from allocation " << n << " on";
    ASSERT_EQ(tools::first_difference(session.run_method("forward", {input}, {}), expected), "") << "and again, " << n;
    if (session.stats().calls_repeated == before) {
      break; // the call takes no more than n
    }
    ++stopped;
  }
  EXPECT_GT(stopped, 12);
}

TEST(DeviceMemory, ARefusedCallLeavesThePlainModelItsBits) {
  const torch::jit::Module module = vocoder();
  Reference plain(module.deepcopy(), kCuda);
  const at::Tensor small = at::randn({1, 80, 12}).to(kCuda);
  const at::Tensor large = at::randn({4, 80, 231}).to(kCuda);
  OwnSession ample = make_session(module, 2_GiB);
  const c10::IValue right = ample.run_method("forward", {large}, {});
  OwnSession first = make_session(module, 2_GiB);
  first.run_method("forward", {small}, {});
  std::uint64_t minimum = 0;
  for (std::uint64_t budget = first.placement().budget.minimum;; budget = minimum) {
    first.set_vram_budget(budget);
    try {
      ASSERT_EQ(tools::first_difference(first.run_method("forward", {large}, {}), right), "");
      break;
    } catch (const BudgetError& error) {
      ASSERT_GT(error.minimum_bytes(), minimum) << "the smallest budget that is named works";
      minimum = error.minimum_bytes();
    }
  }
  EXPECT_EQ(tools::first_difference(plain.run("forward", {large}), right), "");
  EXPECT_LE(first.stats().peak_device_bytes, std::max(minimum, first.placement().budget.vram));
}

TEST(DeviceMemory, WhatAStoppedCallWroteInTheModuleIsPutBack) {
  torch::jit::Module module("Counter");
  module.register_parameter("w", at::randn({512, 512}).mul(0.04), false);
  module.register_buffer("total", at::arange(512).to(at::kFloat));
  module.register_attribute("calls", c10::IntType::get(), 0);
  module.define(R"(
def forward(self, x):
  self.calls += 1
  self.total.add_(1.0)
  y = torch.linear(x, self.w)
  return torch.linear(torch.relu(y) + self.total, self.w) * self.calls, torch.rand_like(y)
)");
  Reference plain(module.deepcopy(), kCuda);
  OwnSession session = make_session(module, 1_GiB);
  std::uint64_t n = 2;
  for (std::int64_t rows = 1; rows < 12; ++rows, ++n) {
    const at::Tensor input = at::randn({rows, 512}).to(kCuda);
    at::manual_seed(rows);
    session.refuse_from(rows == 1 ? ~std::uint64_t{0} : n);
    const c10::IValue output = session.run_method("forward", {input}, {});
    at::manual_seed(rows);
    ASSERT_EQ(tools::first_difference(output, plain.run("forward", {input})), "") << "call " << rows;
  }
  EXPECT_GT(session.stats().calls_repeated, 3U);
  EXPECT_EQ(session.attr("calls").toInt(), 11);
}

TEST(DeviceMemory, ListsOfAModuleAreSharedAndAsTheyWereWhenACallIsMadeAgain) {
  torch::jit::Module module("Lists");
  module.register_parameter("w", at::randn({512, 512}).mul(0.04), false);
  const c10::List<std::int64_t> numbers({1, 2});
  module.register_attribute("seen", c10::ListType::create(c10::IntType::get()), numbers);
  module.register_attribute("same", c10::ListType::create(c10::IntType::get()), numbers);
  module.define(R"(
def forward(self, x):
  self.seen.append(x.size(0))
  y = torch.relu(torch.linear(x, self.w))
  return torch.linear(y + float(len(self.same)), self.w), len(self.seen), len(self.same)
)");
  Reference plain(module.deepcopy(), kCuda);
  OwnSession session = make_session(module, 1_GiB);
  for (std::int64_t rows = 1; rows < 8; ++rows) {
    const at::Tensor input = at::randn({rows, 512}).to(kCuda);
    session.refuse_from(rows == 1 ? ~std::uint64_t{0} : static_cast<std::uint64_t>(rows));
    ASSERT_EQ(tools::first_difference(session.run_method("forward", {input}, {}), plain.run("forward", {input})), "")
        << "call " << rows;
  }
  EXPECT_GT(session.stats().calls_repeated, 2U);
}

TEST(DeviceMemory, StateThatSharesMemoryGoesOnSharingIt) {
  torch::jit::Module module("Shared");
  module.register_parameter("w", at::randn({512, 512}).mul(0.04), false);
  module.register_buffer("all", at::zeros({4, 512}));
  module.register_buffer("last", at::zeros({512}));
  module.register_buffer("across", at::zeros({4}));
  module.define(R"(
def forward(self, x):
  if x.size(0) == 1:
    self.all = torch.linear(x, self.w).expand(4, 512).clone()
    self.last = self.all[3]
    self.across = self.all[:, 7]
  self.all.add_(1.0)
  return torch.linear(torch.relu(x), self.w), self.all + 0, self.last * 2, self.across * 3
)");
  Reference plain(module.deepcopy(), kCuda);
  OwnSession session = make_session(module, 1_GiB);
  for (const std::int64_t rows : {1, 3, 2, 1, 5}) {
    const at::Tensor input = at::randn({rows, 512}).to(kCuda);
    ASSERT_EQ(tools::first_difference(session.run_method("forward", {input}, {}), plain.run("forward", {input})), "")
        << rows << " rows";
  }
}

/// A copy of all that is resident would not fit beside it.
TEST(DeviceMemory, WeightsThatStayAreNoStateOfAModuleThatHasSome) {
  torch::jit::Module module = stack_of(24);
  module.register_buffer("count", at::zeros({1}));
  module.define("def counted(self, x):\n  self.count.add_(1.0)\n  return self.forward(x) + self.count\n");
  Reference plain(module.deepcopy(), kCuda);
  OwnSession session = make_session(module, 176_MiB);
  for (std::int64_t rows = 1; rows < 10; ++rows) {
    const at::Tensor input = at::randn({rows, 1024}).to(kCuda);
    ASSERT_EQ(tools::first_difference(session.run_method("counted", {input}, {}), plain.run("counted", {input})), "");
  }
  EXPECT_EQ(session.stats().calls_repeated, 0U);
  EXPECT_GE(session.stats().bytes_resident, 96_MiB);
}

TEST(DeviceMemory, ARefusedCallLeavesThePlanAsItWas) {
  OwnSession session = make_session(stack_of(8), 256_MiB);
  const at::Tensor small = at::randn({4, 1024}).to(kCuda);
  session.run_method("forward", {small}, {});
  session.run_method("forward", {small}, {});
  const Budget before = session.placement().budget;
  const at::Tensor huge = at::randn({262144, 1024}).to(kCuda);
  for (int call = 0; call < 2; ++call) {
    EXPECT_THROW(session.run_method("forward", {huge}, {}), BudgetError);
    session.run_method("forward", {small}, {});
    EXPECT_EQ(session.placement().budget.minimum, before.minimum);
    EXPECT_EQ(session.placement().budget.resident, before.resident);
  }
  EXPECT_NO_THROW(session.set_vram_budget(before.vram));
}

TEST(DeviceMemory, ACallIsRefusedForItsOwnSizeNotForItsShape) {
  torch::jit::Module module("Data");
  module.register_parameter("w", at::randn({512, 512}), false);
  module.define("def forward(self, x, n):\n  return torch.linear(x.repeat([int(n.item()), 1]), self.w).sum()\n");
  OwnSession session = make_session(module, 128_MiB);
  const at::Tensor x = at::randn({64, 512}).to(kCuda);
  const auto times = [](std::int64_t n) { return at::full({1}, n, at::TensorOptions(at::kLong).device(kCuda)); };
  session.run_method("forward", {x, times(1)}, {});
  EXPECT_THROW(session.run_method("forward", {x, times(4000)}, {}), BudgetError);
  EXPECT_NO_THROW(session.run_method("forward", {x, times(2)}, {}));
  EXPECT_THROW(session.run_method("forward", {x, times(4000)}, {}), BudgetError);
  EXPECT_NO_THROW(session.run_method("forward", {x, times(1)}, {}));
}

TEST(DeviceMemory, ArgumentsThatAStoppedCallHasWrittenToAreTold) {
  torch::jit::Module module("Writer");
  module.register_parameter("w", at::randn({512, 512}), false);
  module.define("def forward(self, x):\n  x.add_(1.0)\n  return torch.linear(x, self.w)\n");
  OwnSession session = make_session(module, 1_GiB);
  session.run_method("forward", {at::randn({4, 512}).to(kCuda)}, {});
  session.refuse_from(2);
  EXPECT_THROW(session.run_method("forward", {at::randn({5, 512}).to(kCuda)}, {}), Error);
  EXPECT_NO_THROW(session.run_method("forward", {at::randn({5, 512}).to(kCuda)}, {}));

  // Those of InferenceMode have no version, and are put back.
  const at::Tensor values = at::randn({6, 512}).to(kCuda);
  const c10::IValue expected = session.run_method("forward", {values.clone()}, {});
  const c10::InferenceMode inference;
  const at::Tensor written = values.clone();
  session.refuse_from(3);
  EXPECT_EQ(tools::first_difference(session.run_method("forward", {written}, {}), expected), "");
  EXPECT_EQ(tools::first_difference(written, values.add(1.0)), "") << "once";
}

TEST(DeviceMemory, HandlesDoNotGrowWithTheThreadsThatCall) {
  for (const int lanes : {1, 4}) {
    OwnSession session = make_session(stack_of(4), 1_GiB, lanes);
    const at::Tensor input = at::randn({64, 1024}).to(kCuda);
    const c10::IValue expected = session.run_method("forward", {input}, {});
    std::atomic<int> wrong = 0;
    const auto call_from = [&](int count) {
      std::vector<std::thread> threads;
      std::atomic<int> inside = 0;
      for (int i = 0; i < count; ++i) {
        threads.emplace_back([&] {
          ++inside;
          while (inside < count) { // all of them are there at once
            std::this_thread::yield();
          }
          for (int call = 0; call < 10; ++call) {
            wrong += tools::first_difference(session.run_method("forward", {input}, {}), expected).empty() ? 0 : 1;
          }
        });
      }
      for (std::thread& thread : threads) {
        thread.join();
      }
      return driver_bytes();
    };
    session.run_method("forward", {input}, {}); // the first one found its workspace where there was room
    const std::uint64_t one = driver_bytes() - session.stats().peak_device_bytes;
    const std::uint64_t many = call_from(16) - session.stats().peak_device_bytes;
    std::cout << lanes << " lanes: 16 threads take " << (many - std::min(one, many)) / 1_MiB << " MiB more than one\n";
    EXPECT_LE(many, one + static_cast<std::uint64_t>(lanes) * 64_MiB);
    EXPECT_LE(call_from(24) - session.stats().peak_device_bytes, many + 2_MiB);
    EXPECT_EQ(wrong, 0);
  }
}

TEST(DeviceMemory, WhatALargeCallTookBecomesRoomForWeightsAgain) {
  const torch::jit::Module module = stack_of(32);
  Reference plain(module.deepcopy(), kCuda);
  OwnSession session = make_session(module, 192_MiB);
  const at::Tensor small = at::randn({4, 1024}).to(kCuda);
  const c10::IValue expected = plain.run("forward", {small});
  session.run_method("forward", {small}, {});
  session.run_method("forward", {small}, {});
  const std::uint64_t all = session.stats().bytes_resident;
  session.run_method("forward", {at::randn({8192, 1024}).to(kCuda)}, {});
  session.run_method("forward", {small}, {});
  EXPECT_LT(session.stats().bytes_resident, all);
  for (std::uint64_t call = 0; call < 2 * Activations::kPeriod + 2; ++call) {
    session.run_method("forward", {small}, {});
  }
  EXPECT_EQ(session.stats().bytes_resident, all);
  EXPECT_EQ(tools::first_difference(session.run_method("forward", {small}, {}), expected), "");
  EXPECT_LE(session.stats().peak_device_bytes, 192_MiB);
}

TEST(DeviceMemory, WhatIsReleasedTheDeviceHasAgain) {
  const torch::jit::Module module = stack_of(32);
  Reference plain(module.deepcopy(), kCuda);
  const at::Tensor x = at::randn({64, 1024}).to(kCuda);
  const c10::IValue expected = plain.run("forward", {x});
  for (const std::uint64_t budget : {160_MiB, 1_GiB}) {
    OwnSession session = make_session(module, budget);
    session.run_method("forward", {x}, {});
    session.run_method("forward", {x}, {}); // kernels and handles are there
    session.release();
    const std::uint64_t before = driver_bytes();
    for (int round = 0; round < 3; ++round) {
      EXPECT_EQ(tools::first_difference(session.run_method("forward", {x}, {}), expected), "");
      EXPECT_GE(driver_bytes(), before + 128_MiB);
      session.release();
      EXPECT_EQ(driver_bytes(), before);
      EXPECT_LT(session.stats().bytes_resident, 1_MiB);
    }
  }
}

TEST(DeviceMemory, TheSecondModuleIsOfferedWhatTheFirstWas) {
  const auto offered = [] {
    Options options;
    options.device = kCuda;
    OwnSession session(stack_of(4), options, std::nullopt, OwnSession::Purpose::run, Owner::shared);
    session.run_method("forward", {at::randn({64, 1024}).to(kCuda)}, {});
    return session.placement().budget.vram;
  };
  const std::uint64_t first = offered();
  c10::cuda::CUDACachingAllocator::emptyCache();
  const std::uint64_t second = offered();
  std::cout << "offered " << first / 1_MiB << " MiB, then " << second / 1_MiB << " MiB\n";
  EXPECT_LE(std::max(first, second) - std::min(first, second), 16_MiB);
}

/// PyTorch's cache full of blocks that nobody uses, little free by the driver, and somebody who wants most of it.
TEST(DeviceMemory, OthersGetTheirsWhileAModuleIsCalled) {
  torch::jit::Module module("Plain");
  module.register_parameter("w", at::randn({1024, 1024}), false);
  module.define(
      "def forward(self, x):\n  for i in range(20):\n    x = torch.tanh(torch.linear(x, self.w))\n  return x\n");
  const at::Tensor input = at::randn({64, 1024}).to(kCuda);
  OwnSession session = make_session(module, 256_MiB, 2);
  const c10::IValue expected = session.run_method("forward", {input}, {});
  std::atomic<bool> done = false;
  std::atomic<int> wrong = 0;
  std::atomic<int> calls = 0;
  std::vector<std::thread> callers;
  for (int thread = 0; thread < 2; ++thread) {
    callers.emplace_back([&] {
      while (!done) {
        wrong += tools::first_difference(session.run_method("forward", {input}, {}), expected).empty() ? 0 : 1;
        ++calls;
      }
    });
  }
  const auto bytes = [](std::uint64_t count) {
    return at::empty({static_cast<std::int64_t>(count)}, at::TensorOptions(at::kByte).device(kCuda));
  };
  const int seen = calls;
  for (int round = 0; round < 10; ++round) {
    std::size_t free = 0;
    std::size_t total = 0;
    std::vector<at::Tensor> blocks;
    ASSERT_EQ(cudaMemGetInfo(&free, &total), cudaSuccess);
    for (std::uint64_t left = free; left > 3_GiB; left -= 1_GiB) {
      blocks.push_back(bytes(1_GiB));
    }
    blocks.clear(); // cached, in pieces of 1 GiB
    EXPECT_NO_THROW(bytes(20_GiB)) << "round " << round;
    c10::cuda::CUDACachingAllocator::emptyCache();
  }
  done = true;
  for (std::thread& caller : callers) {
    caller.join();
  }
  EXPECT_EQ(wrong, 0);
  EXPECT_GT(calls, seen) << "calls went on";
}

} // namespace
} // namespace offload
