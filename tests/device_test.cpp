// What only a GPU can show: order between streams, memory by the driver's own figures, nothing growing.

#include <ATen/ops/full.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <random>

#include <models/stack.h>
#include <models/transformer.h>
#include <offload/graph/reference.h>
#include <offload/module.h>
#include <tests/spin.h>
#include <tools/compare.h>

namespace offload {
namespace {

const c10::Device kCuda(c10::kCUDA, 0);

torch::jit::Module stack(int layers, int features) {
  models::StackOptions options;
  options.layers = layers;
  options.features = features;
  return models::residual_stack(options);
}

std::uint64_t device_bytes_taken() {
  std::size_t free = 0;
  std::size_t total = 0;
  c10::cuda::device_synchronize();
  EXPECT_EQ(cudaMemGetInfo(&free, &total), cudaSuccess);
  return total - free;
}

std::uint64_t resident_set() {
  std::ifstream statm("/proc/self/statm");
  std::uint64_t size = 0;
  std::uint64_t pages = 0;
  statm >> size >> pages;
  return pages * 4096;
}

std::size_t descriptors() {
  return std::distance(std::filesystem::directory_iterator("/proc/self/fd"), std::filesystem::directory_iterator());
}

TEST(Device, CallsAreOrderedOnTheCallersStream) {
  const torch::jit::Module module = stack(8, 1024);
  Reference reference(module.deepcopy(), kCuda);
  Options options;
  options.device = kCuda;
  options.vram_budget = 96_MiB;
  Module offloaded = wrap(module.deepcopy(), options);
  const at::Tensor value = at::randn({4, 1024}).to(kCuda);
  const c10::IValue expected = reference.run("forward", {value});
  c10::cuda::device_synchronize();
  for (int round = 0; round < 20; ++round) {
    const c10::cuda::CUDAStream stream = c10::cuda::getStreamFromPool(false, 0);
    const c10::cuda::CUDAStreamGuard guard(stream);
    const at::Tensor input = at::zeros({4, 1024}, at::TensorOptions(kCuda));
    spin(stream.stream(), 3000);
    input.copy_(value); // comes after the spin: a call that did not wait for the stream would read zeros
    at::Tensor output = offloaded.forward({input}).toTensor();
    const at::Tensor copy = output.clone(); // a stream that did not wait for the call would read what was there before
    input.fill_(1e9);                       // and may overwrite the input as soon as the call has read it
    stream.synchronize();
    ASSERT_EQ(tools::first_difference(copy, expected), "") << "round " << round;
    ASSERT_EQ(tools::first_difference(output, expected), "") << "round " << round;
  }
}

TEST(Device, SlowComputeAndSlowCopiesKeepTheirOrder) {
  const torch::jit::Module module = stack(40, 1024);
  Reference reference(module.deepcopy(), kCuda);
  Options options;
  options.device = kCuda;
  options.vram_budget = 160_MiB; // less than weights and activations: the ring is used over and over
  Module offloaded = wrap(module.deepcopy(), options);
  for (const std::int64_t rows : {1, 4096}) { // copies behind compute, compute behind copies
    for (int round = 0; round < 30; ++round) {
      const at::Tensor input = at::randn({rows, 1024}).to(kCuda);
      ASSERT_EQ(tools::first_difference(offloaded.forward({input}), reference.run("forward", {input})), "")
          << rows << " rows, round " << round;
    }
  }
}

TEST(Device, TheDriverSeesNoMoreThanTheBudget) {
  models::TransformerOptions model;
  model.layers = 8;
  model.width = 1024;
  model.heads = 16;
  model.vocab = 8192;
  model.dtype = at::kBFloat16;
  const torch::jit::Module module = models::transformer(model);
  const at::Tensor tokens = at::full({1, 64}, 3, at::TensorOptions(at::kLong).device(kCuda));
  {
    // Kernels and handles of the same model are loaded before: they belong to the context, not to the budget.
    Reference reference(module.deepcopy(), kCuda);
    reference.run("forward", {tokens});
    Options warm;
    warm.device = kCuda;
    warm.vram_budget = 1_GiB;
    wrap(module.deepcopy(), warm).forward({tokens});
  }
  c10::cuda::device_synchronize();
  c10::cuda::CUDACachingAllocator::emptyCache();
  const std::uint64_t before = device_bytes_taken();
  for (const std::uint64_t budget : {128_MiB, 192_MiB, 512_MiB}) {
    Options options;
    options.device = kCuda;
    options.vram_budget = budget;
    Module offloaded = wrap(module.deepcopy(), options);
    std::uint64_t peak = 0;
    for (int call = 0; call < 6; ++call) {
      offloaded.forward({tokens});
      peak = std::max(peak, device_bytes_taken() - before);
    }
    const std::uint64_t outside = 2_MiB; // the output of the last call, in the memory of its caller
    std::cout << "budget " << budget << ", driver " << peak << ", own figure " << offloaded.stats().peak_device_bytes
              << '\n';
    EXPECT_LE(peak, budget + outside);
    EXPECT_LE(offloaded.stats().peak_device_bytes, budget);
    EXPECT_GE(offloaded.stats().peak_device_bytes + 2_MiB, std::min<std::uint64_t>(peak, budget));
  }
}

TEST(Device, TenThousandCallsGrowNothing) {
  const torch::jit::Module module = stack(8, 512);
  Options options;
  options.device = kCuda;
  options.vram_budget = 72_MiB;
  Module offloaded = wrap(module.deepcopy(), options);
  const at::Tensor input = at::randn({4, 512}).to(kCuda);
  for (int call = 0; call < 200; ++call) {
    offloaded.forward({input});
  }
  const std::uint64_t device = device_bytes_taken();
  const std::uint64_t host = resident_set();
  const std::size_t open = descriptors();
  const Stats before = offloaded.stats();
  for (int call = 0; call < 10000; ++call) {
    offloaded.forward({input});
  }
  EXPECT_EQ(device_bytes_taken(), device);
  EXPECT_LE(resident_set(), host + 1_MiB);
  EXPECT_EQ(descriptors(), open);
  const Stats after = offloaded.stats();
  EXPECT_EQ(after.misses, before.misses);
  const std::uint64_t moved = (after.bytes_streamed - after.bytes_ahead) - (before.bytes_streamed - before.bytes_ahead);
  EXPECT_EQ(moved, 10000 * offloaded.placement().predicted.streamed_bytes);
  std::cout << "RSS " << host << " -> " << resident_set() << ", device " << device << " -> " << device_bytes_taken()
            << ", descriptors " << open << " -> " << descriptors() << '\n';
}

TEST(Device, TheStagedStoreIsBitIdentical) {
  const torch::jit::Module module = stack(32, 1024);
  Reference reference(module.deepcopy(), kCuda);
  Options options;
  options.device = kCuda;
  options.vram_budget = 96_MiB;
  for (const std::uint64_t pinned : {8_MiB, 16_MiB, 64_MiB}) {
    options.pinned_budget = pinned;
    Module offloaded = wrap(module.deepcopy(), options);
    EXPECT_LE(offloaded.placement().budget.pinned, pinned);
    for (int call = 0; call < 20; ++call) {
      const at::Tensor input = at::randn({call % 2 == 0 ? 1 : 64, 1024}).to(kCuda);
      ASSERT_EQ(tools::first_difference(offloaded.forward({input}), reference.run("forward", {input})), "") << call;
    }
    EXPECT_GT(offloaded.stats().bytes_streamed, 0U);
  }
}

TEST(Device, AWeightThatIsPageLockedInPartStaysAndStreams) {
  const torch::jit::Module module = stack(16, 1024); // of 4 MiB
  Reference reference(module.deepcopy(), kCuda);
  Options options;
  options.device = kCuda;
  options.vram_budget = 1_GiB;
  options.pinned_budget = 38_MiB; // 32 for staging, then a weight and a half
  Module offloaded = wrap(module.deepcopy(), options);
  const at::Tensor input = at::randn({3, 1024}).to(kCuda);
  const c10::IValue expected = reference.run("forward", {input});
  for (int round = 0; round < 2; ++round) {
    for (int call = 0; call < 3; ++call) {
      ASSERT_EQ(tools::first_difference(offloaded.forward({input}), expected), "") << round << ' ' << call;
    }
    offloaded.set_vram_budget(round == 0 ? offloaded.placement().budget.minimum : 1_GiB);
  }
  ASSERT_EQ(tools::first_difference(offloaded.forward({input}), expected), "");
  EXPECT_EQ(offloaded.placement().predicted.streamed_bytes, 0U);
}

TEST(Device, ALargerCallThanAnyBeforeMakesRoom) {
  const torch::jit::Module module = stack(4, 1024);
  Options options;
  options.device = kCuda;
  options.vram_budget = 128_MiB;
  Module offloaded = wrap(module.deepcopy(), options);
  offloaded.forward({at::randn({4, 1024}).to(kCuda)});
  const at::Tensor large = at::randn({4096, 1024}).to(kCuda);
  Reference reference(module.deepcopy(), kCuda);
  const c10::IValue expected = reference.run("forward", {large});
  for (int call = 0; call < 3; ++call) {
    EXPECT_EQ(tools::first_difference(offloaded.forward({large}), expected), "");
  }
  EXPECT_LE(offloaded.stats().calls_repeated, 1U);
  EXPECT_LE(offloaded.stats().peak_device_bytes, 128_MiB);
  const at::Tensor huge = at::randn({65536, 1024}).to(kCuda);
  std::uint64_t minimum = 0;
  for (int call = 0; call < 2; ++call) {
    try {
      offloaded.forward({huge});
      ADD_FAILURE() << "two tensors of 256 MiB do not fit";
    } catch (const BudgetError& error) {
      EXPECT_TRUE(call == 0 || error.minimum_bytes() == minimum) << error.what();
      minimum = error.minimum_bytes();
    }
  }
  EXPECT_EQ(tools::first_difference(offloaded.forward({large}), expected), "");
  EXPECT_LE(offloaded.stats().peak_device_bytes, 128_MiB);
  offloaded.set_vram_budget(minimum);
  EXPECT_EQ(tools::first_difference(offloaded.forward({huge}), reference.run("forward", {huge})), "")
      << "the smallest budget that was named";
  EXPECT_LE(offloaded.stats().peak_device_bytes, minimum);
  EXPECT_THROW(offloaded.set_vram_budget(minimum - 2_MiB), BudgetError) << "calls have shown what they take";
}

TEST(Device, TheMinimumForActivationsIsExact) {
  const torch::jit::Module module = stack(4, 1024);
  const at::Tensor huge = at::randn({65536, 1024}).to(kCuda);
  Options options;
  options.device = kCuda;
  options.example_calls = {{"forward", {huge}, {}}};
  const auto minimum_at = [&](std::uint64_t vram) -> std::uint64_t {
    options.vram_budget = vram;
    try {
      wrap(module.deepcopy(), options);
    } catch (const BudgetError& error) {
      return error.minimum_bytes();
    }
    return 0;
  };
  const std::uint64_t minimum = minimum_at(100_MiB);
  EXPECT_GT(minimum, 512_MiB) << "two tensors of 256 MiB at least";
  EXPECT_EQ(minimum_at(minimum - 1), minimum);
  Reference reference(module.deepcopy(), kCuda);
  const c10::IValue expected = reference.run("forward", {huge});
  options.vram_budget = minimum;
  Module offloaded = wrap(module.deepcopy(), options);
  for (int call = 0; call < 3; ++call) {
    EXPECT_EQ(tools::first_difference(offloaded.forward({huge}), expected), "");
  }
  EXPECT_LE(offloaded.stats().peak_device_bytes, minimum);
  EXPECT_EQ(offloaded.stats().misses, 0U);
  options.example_calls.clear(); // a first call that finds no room while it is measured gives the right output
  for (const std::uint64_t more : {0_MiB, 4_MiB}) {
    options.vram_budget = minimum + more;
    Module unknown = wrap(module.deepcopy(), options);
    for (int call = 0; call < 3; ++call) {
      EXPECT_EQ(tools::first_difference(unknown.forward({huge}), expected), "");
    }
    EXPECT_LE(unknown.stats().peak_device_bytes, minimum + more);
  }
}

/// Convolutions on images of several sizes: each size leaves the pool in pieces of its own.
TEST(Device, CallsOfManyShapesFitTheSmallestBudget) {
  torch::jit::Module module("Model");
  for (int i = 0; i < 4; ++i) {
    module.register_parameter("w" + std::to_string(i), at::randn({256, 256, 3, 3}).mul(1.0 / 48), false);
  }
  module.define(R"(
def forward(self, x):
  for i in range(2):
    x = torch.relu(torch.conv2d(x, self.w0, padding=[1, 1]))
    x = torch.relu(torch.conv2d(x, self.w1, padding=[1, 1]))
    x = torch.relu(torch.conv2d(x, self.w2, padding=[1, 1])) + torch.cat([x, x], 1).sum(1, keepdim=True)
  return torch.conv2d(x, self.w3)
)");
  std::vector<at::Tensor> images;
  Options options;
  options.device = kCuda;
  options.vram_budget = 1;
  for (const std::int64_t side : {17, 64, 40, 90, 33, 71}) {
    images.push_back(at::randn({2, 256, side, side}).to(kCuda));
    options.example_calls.push_back({"forward", {images.back()}, {}});
  }
  for (int attempt = 0; attempt < 2; ++attempt) {
    try {
      wrap(module.deepcopy(), options);
    } catch (const BudgetError& error) {
      options.vram_budget = error.minimum_bytes();
    }
  }
  Reference reference(module.deepcopy(), kCuda);
  Module offloaded = wrap(module.deepcopy(), options);
  std::mt19937 random(5);
  for (int call = 0; call < 60; ++call) {
    const at::Tensor& image = images[random() % images.size()];
    ASSERT_EQ(tools::first_difference(offloaded.forward({image}), reference.run("forward", {image})), "") << call;
  }
  EXPECT_LE(offloaded.stats().peak_device_bytes, *options.vram_budget);
}

TEST(Device, WhatIsOutsideOfBudgetsIsNamed) {
  Options options;
  options.device = kCuda;
  options.vram_budget = 1_GiB;
  Module first = wrap(stack(4, 1024), options);
  first.forward({at::randn({64, 1024}).to(kCuda)});
  const std::uint64_t before = first.stats().outside_bytes;
  EXPECT_GT(before, 100_MiB) << "a context takes more";
  EXPECT_LE(first.placement().budget.outside, before);
  EXPECT_GE(first.placement().budget.outside + 66_MiB, before) << "handles at most";
  const at::Tensor tensor = at::zeros({64 << 20}, at::TensorOptions(kCuda)); // of PyTorch's allocator
  Module second = wrap(stack(4, 1024), options);
  second.forward({at::randn({512, 1024}).to(kCuda)});
  const std::uint64_t with_both = first.stats().outside_bytes;
  EXPECT_LE(with_both, before + 66_MiB) << "handles of the other one's lane";
  void* beside = nullptr;
  ASSERT_EQ(cudaMalloc(&beside, 256_MiB), cudaSuccess);
  EXPECT_EQ(first.stats().outside_bytes, with_both + 256_MiB);
  ASSERT_EQ(cudaFree(beside), cudaSuccess);
}

} // namespace
} // namespace offload
