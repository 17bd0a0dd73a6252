// Calls compute on the caller's stream: what that means for memory, workspaces, and for others who use the stream.

#include <ATen/cuda/CUDAContextLight.h>
#include <ATen/ops/add.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/randn.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>
#include <torch/csrc/jit/frontend/resolver.h>
#include <torch/csrc/jit/frontend/sugared_value.h>
#include <torch/library.h>

#include <atomic>
#include <functional>
#include <thread>

#include <models/stack.h>
#include <offload/device/torch_versions.h>
#include <offload/graph/reference.h>
#include <offload/module.h>
#include <tests/spin.h>
#include <tools/compare.h>

namespace offload {
namespace {

const c10::Device kCuda(c10::kCUDA, 0);

torch::jit::Module stack(int layers) {
  models::StackOptions options;
  options.layers = layers;
  options.features = 1024;
  return models::residual_stack(options);
}

Options with_budget(std::uint64_t vram) {
  Options options;
  options.device = kCuda;
  options.vram_budget = vram;
  return options;
}

/// Without what PyTorch's allocator keeps for streams.
std::uint64_t device_bytes_taken() {
  std::size_t free = 0;
  std::size_t total = 0;
  c10::cuda::device_synchronize();
  c10::cuda::CUDACachingAllocator::emptyCache();
  EXPECT_EQ(cudaMemGetInfo(&free, &total), cudaSuccess);
  return total - free;
}

/// Questions ask the device whether copies have been made, and its answer "not yet" is an error to CUDA.
TEST(DeviceStreams, APendingErrorOfTheCallerStaysPending) {
  Module offloaded = wrap(stack(24), with_budget(112_MiB));
  const at::Tensor x = at::randn({4, 1024}, kCuda);
  for (int call = 0; call < 20; ++call) {
    offloaded.forward({x});
    EXPECT_EQ(cudaPeekAtLastError(), cudaSuccess) << "a call leaves none of its own";
    void* data = nullptr;
    ASSERT_EQ(cudaMalloc(&data, ~std::size_t{0} / 2), cudaErrorMemoryAllocation);
    offloaded.stats();
    EXPECT_EQ(cudaGetLastError(), cudaErrorMemoryAllocation);
  }
}

TEST(DeviceStreams, TheMemoryOfALaneGoesWhereItIsCalled) {
  const torch::jit::Module module = stack(24);
  Reference reference(module.deepcopy(), kCuda);
  Module offloaded = wrap(module.deepcopy(), with_budget(112_MiB));
  const at::Tensor input = at::randn({64, 1024}).to(kCuda);
  const c10::IValue expected = reference.run("forward", {input});
  c10::cuda::device_synchronize();
  std::uint64_t taken = 0;
  for (int round = 0; round < 120; ++round) {
    // The default stream, one of PyTorch's, and one that is destroyed while the device is still busy with it.
    cudaStream_t external = nullptr;
    ASSERT_EQ(cudaStreamCreateWithFlags(&external, cudaStreamNonBlocking), cudaSuccess);
    for (const c10::cuda::CUDAStream& stream :
         {c10::cuda::getDefaultCUDAStream(0), c10::cuda::getStreamFromPool(false, 0),
          c10::cuda::getStreamFromExternal(external, 0)}) {
      const c10::cuda::CUDAStreamGuard guard(stream);
      spin(stream.stream(), round % 4 == 0 ? 500 : 0); // the next call is enqueued long before this one is over
      const at::Tensor output = offloaded.forward({input}).toTensor();
      ASSERT_EQ(tools::first_difference(output, expected), "") << "round " << round;
      if (stream.stream() == external) {
        offloaded.forward({input});
      }
    }
    ASSERT_EQ(cudaStreamDestroy(external), cudaSuccess);
    if (round == 40) {
      taken = device_bytes_taken();
    }
  }
  EXPECT_LE(device_bytes_taken(), taken);
  const Stats stats = offloaded.stats();
  EXPECT_LE(stats.peak_device_bytes, 112_MiB);
  EXPECT_EQ(stats.misses, 0);
}

/// Those that PyTorch would use for the next product of this thread, by kind.
std::vector<void*> workspaces_of(cudaStream_t stream) {
  void* handle = at::cuda::getCurrentCUDABlasHandle();
  std::vector<void*> found;
  for (at::cuda::WorkspaceMapWithMutex* all :
       {&at::cuda::cublas_handle_stream_to_workspace(), &at::cuda::cublaslt_handle_stream_to_workspace()}) {
    const std::unique_lock lock(all->mutex);
    const auto entry = all->map.find({handle, stream});
    found.push_back(entry == all->map.end() ? nullptr : workspace_address(entry->second));
  }
  return found;
}

TEST(DeviceStreams, TheCallersWorkspacesAreTheCallersAgain) {
  if (!keeps_workspaces()) {
    GTEST_SKIP() << "PyTorch keeps no workspaces: set TORCH_CUBLAS_WORKSPACE_CACHE=1";
  }
  Module offloaded = wrap(stack(8), with_budget(112_MiB));
  const at::Tensor input = at::randn({64, 1024}).to(kCuda);
  const c10::cuda::CUDAStream stream = c10::cuda::getStreamFromPool(false, 0);
  const c10::cuda::CUDAStreamGuard guard(stream);
  for (int round = 0; round < 3; ++round) {
    offloaded.forward({input});
    std::size_t of_stream = 0;
    auto& all = at::cuda::cublas_handle_stream_to_workspace();
    {
      const std::unique_lock lock(all.mutex);
      for (const auto& entry : all.map) {
        of_stream += std::get<1>(entry.first) == stream.stream() ? 1 : 0;
      }
    }
    ASSERT_EQ(of_stream, 0U) << "a workspace of the lane was left to the caller in round " << round;
  }
  at::matmul(input, input.t());
  const std::vector<void*> before = workspaces_of(stream.stream());
  ASSERT_NE(before[0], nullptr);
  const std::uint64_t peak = offloaded.stats().peak_device_bytes;
  for (int round = 0; round < 3; ++round) {
    offloaded.forward({input});
    ASSERT_EQ(workspaces_of(stream.stream()), before) << "round " << round;
  }
  EXPECT_EQ(offloaded.stats().peak_device_bytes, peak);
}

TEST(DeviceStreams, WhatOthersAllocateOnTheSameStreamIsTheirs) {
  const torch::jit::Module module = stack(24);
  Reference reference(module.deepcopy(), kCuda);
  Module offloaded = wrap(module.deepcopy(), with_budget(112_MiB));
  const at::Tensor input = at::randn({64, 1024}).to(kCuda);
  const c10::IValue expected = reference.run("forward", {input});
  offloaded.forward({input});
  std::atomic<bool> done = false;
  std::atomic<int> wrong = 0;
  std::thread other([&] { // more than the lane's memory would have room for, on the same stream
    for (int i = 0; !done; ++i) {
      const at::Tensor mine = at::empty({16 << 20}, at::TensorOptions(at::kFloat).device(kCuda)).fill_(i);
      wrong += mine[12345].item<float>() == static_cast<float>(i) ? 0 : 1;
    }
  });
  for (int round = 0; round < 100; ++round) {
    EXPECT_EQ(tools::first_difference(offloaded.forward({input}), expected), "") << "round " << round;
  }
  done = true;
  other.join();
  EXPECT_EQ(wrong, 0);
  EXPECT_LE(offloaded.stats().peak_device_bytes, 112_MiB);
}

Module* inner_module = nullptr;

TORCH_LIBRARY(device_streams, library) {
  library.def("inner(Tensor x) -> Tensor", [](const at::Tensor& x) { return inner_module->forward({x}).toTensor(); });
}

/// Knows that library by its name.
struct Resolver : torch::jit::NativeResolver {
  std::shared_ptr<torch::jit::SugaredValue> resolveValue(const std::string& name, torch::jit::GraphFunction& method,
                                                         const torch::jit::SourceRange& where) override {
    return name == "device_streams" ? std::make_shared<torch::jit::BuiltinModule>(name)
                                    : NativeResolver::resolveValue(name, method, where);
  }
};

TEST(DeviceStreams, AModuleMayBeCalledWithinACallOfAnother) {
  const torch::jit::Module within = stack(12);
  torch::jit::Module around = stack(12);
  around.define(R"(
    def twice(self, x):
      y = device_streams.inner(self.forward(x))
      return self.forward(y) + device_streams.inner(y)
  )",
                std::make_shared<Resolver>());
  Reference inner_reference(within.deepcopy(), kCuda);
  Reference outer_reference(around.deepcopy(), kCuda);
  const at::Tensor input = at::randn({64, 1024}).to(kCuda);
  const auto call = [](Reference& model, const at::Tensor& x) { return model.run("forward", {x}).toTensor(); };
  const at::Tensor y = call(inner_reference, call(outer_reference, input));
  const c10::IValue expected = at::add(call(outer_reference, y), call(inner_reference, y));
  Module inner = wrap(within.deepcopy(), with_budget(96_MiB));
  inner_module = &inner;
  Module outer = wrap(around.deepcopy(), with_budget(96_MiB));
  for (int round = 0; round < 10; ++round) {
    ASSERT_EQ(tools::first_difference(outer.run_method("twice", {input}), expected), "") << "round " << round;
  }
  EXPECT_LE(inner.stats().peak_device_bytes, 96_MiB);
  EXPECT_LE(outer.stats().peak_device_bytes, 96_MiB);
  inner_module = nullptr;
}

TEST(DeviceStreams, ThreadsWithStreamsOfTheirOwnShareLanes) {
  const torch::jit::Module module = stack(16);
  Reference reference(module.deepcopy(), kCuda);
  Options options = with_budget(192_MiB);
  options.concurrency = 2;
  Module offloaded = wrap(module.deepcopy(), options);
  const at::Tensor input = at::randn({32, 1024}).to(kCuda);
  const c10::IValue expected = reference.run("forward", {input});
  c10::cuda::device_synchronize();
  std::vector<std::thread> threads;
  std::atomic<int> wrong = 0;
  for (int i = 0; i < 5; ++i) {
    threads.emplace_back([&, i] {
      const c10::cuda::CUDAStreamGuard guard(i == 0 ? c10::cuda::getDefaultCUDAStream(0)
                                                    : c10::cuda::getStreamFromPool(false, 0));
      for (int round = 0; round < 40; ++round) {
        wrong += tools::first_difference(offloaded.forward({input}), expected).empty() ? 0 : 1;
      }
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  EXPECT_EQ(wrong, 0);
  EXPECT_LE(offloaded.stats().peak_device_bytes, 192_MiB);
}

} // namespace
} // namespace offload
