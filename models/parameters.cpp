#include "models/parameters.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <string>
#include <thread>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Context.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/ones.h>

namespace offload::models {

namespace {

// What one thread fills at a time, with a generator of its own.
constexpr std::int64_t kBlockElements = 1 << 20;
// Below the size at which ATen would start a team of threads for one operator:
// the threads here are enough.
constexpr std::int64_t kStepElements = 1 << 15;

/// A run of elements of a contiguous host tensor, and the seed of its values.
struct Block {
  at::Tensor elements;
  std::uint64_t seed;
};

std::uint64_t mix(std::uint64_t seed, std::uint64_t index) { // splitmix64
  std::uint64_t z = seed + 0x9e3779b97f4a7c15 * (index + 1);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

void fill(const at::Tensor& elements, double std, const at::Generator& generator) {
  if (at::isFloatingType(elements.scalar_type())) {
    elements.normal_(0, std, generator);
  } else {
    elements.random_(-2, 3, generator);
  }
}

void fill(const Block& block, double std) {
  const at::Generator generator = at::make_generator<at::CPUGeneratorImpl>(block.seed & 0xffffffff);
  // The vectorised path makes floats; half precision goes through it.
  const bool narrow = at::isReducedFloatingType(block.elements.scalar_type());
  const std::int64_t count = block.elements.numel();
  const at::Tensor floats = narrow ? at::empty({std::min(count, kStepElements)}, at::kFloat) : at::Tensor();
  for (std::int64_t begin = 0; begin < count; begin += kStepElements) {
    const std::int64_t step = std::min(kStepElements, count - begin);
    const at::Tensor elements = block.elements.narrow(0, begin, step);
    if (narrow) {
      const at::Tensor values = floats.narrow(0, 0, step);
      fill(values, std, generator);
      elements.copy_(values);
    } else {
      fill(elements, std, generator);
    }
  }
}

void fill(const std::vector<Block>& blocks, double std) {
  std::atomic<std::size_t> next = 0;
  std::mutex mutex;
  std::exception_ptr failure;
  const auto work = [&] {
    try {
      const at::NoGradGuard no_grad;
      for (std::size_t i = next++; i < blocks.size(); i = next++) {
        fill(blocks[i], std);
      }
    } catch (...) {
      next = blocks.size();
      const std::lock_guard<std::mutex> lock(mutex);
      failure = std::current_exception();
    }
  };
  const std::size_t wanted = std::max(1U, std::thread::hardware_concurrency());
  std::vector<std::jthread> threads(std::min(wanted, blocks.size()));
  for (std::jthread& thread : threads) {
    thread = std::jthread(work);
  }
  threads.clear();
  if (failure) {
    std::rethrow_exception(failure);
  }
}

} // namespace

at::Tensor declare(at::IntArrayRef sizes, at::ScalarType dtype) {
  return at::empty(sizes, at::TensorOptions().dtype(dtype).device(at::kMeta));
}

std::uint64_t parameter_bytes(const torch::jit::Module& module) {
  std::unordered_set<const c10::StorageImpl*> seen;
  std::uint64_t bytes = 0;
  for (const at::Tensor& parameter : module.parameters()) {
    if (seen.insert(parameter.storage().unsafeGetStorageImpl()).second) {
      bytes += parameter.storage().nbytes();
    }
  }
  return bytes;
}

void initialize(torch::jit::Module& module, double std, c10::Device device, std::uint64_t seed) {
  const at::NoGradGuard no_grad;
  std::unordered_map<const c10::TensorImpl*, at::Tensor> made;
  std::vector<Block> blocks;
  for (const torch::jit::Module& owner : module.modules()) {
    const auto type = owner.type();
    for (std::size_t slot = 0; slot < type->numAttributes(); ++slot) {
      if (!type->is_parameter(slot)) {
        continue;
      }
      const at::Tensor declared = owner._ivalue()->getSlot(slot).toTensor();
      if (!declared.is_meta()) {
        continue;
      }
      const auto [entry, added] = made.try_emplace(declared.unsafeGetTensorImpl());
      if (added) {
        const std::uint64_t own_seed = mix(seed, made.size());
        const at::TensorOptions options = declared.options().device(device);
        if (declared.dim() == 1 && type->getAttributeName(slot) == "weight") {
          entry->second = at::ones(declared.sizes(), options);
        } else {
          entry->second = at::empty(declared.sizes(), options);
          const at::Tensor elements = entry->second.view({-1});
          if (device.is_cpu()) {
            for (std::int64_t begin = 0; begin < elements.numel(); begin += kBlockElements) {
              const std::int64_t count = std::min(kBlockElements, elements.numel() - begin);
              blocks.push_back({elements.narrow(0, begin, count), mix(own_seed, static_cast<std::uint64_t>(begin))});
            }
          } else {
            at::Generator generator = at::globalContext().defaultGenerator(device).clone();
            generator.set_current_seed(own_seed);
            fill(elements, std, generator);
          }
        }
      }
      owner._ivalue()->setSlot(slot, entry->second);
    }
  }
  fill(blocks, std);
}

} // namespace offload::models
