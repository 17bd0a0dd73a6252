#pragma once

#include <ATen/core/grad_mode.h>
#include <c10/core/Device.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/csrc/jit/runtime/graph_executor.h>
#include <torch/csrc/jit/serialization/import.h>

#include <algorithm>
#include <cstdint>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

namespace offload::test {

/// Plain TorchScript modules, of which a budget of weights is on the device: one that is called and is not there is
/// loaded, and those that were called longest ago are dropped for it. Any thread may call.
class PlainOnDemand {
 public:
  PlainOnDemand(c10::Device device, std::uint64_t budget) : device_(device), budget_(budget) {}

  c10::IValue forward(const std::string& path, const std::vector<c10::IValue>& inputs) {
    const std::shared_ptr<Loaded> loaded = find(path);
    const at::NoGradGuard no_grad;
    const torch::jit::GraphOptimizerEnabledGuard as_it_is(false); // fused operators round in other places
    c10::IValue output = loaded->module.forward(inputs);
    wait();
    return output;
  }

 private:
  struct Loaded {
    std::string path;
    torch::jit::Module module;
    std::uint64_t bytes = 0;
  };

  std::shared_ptr<Loaded> find(const std::string& path) {
    const std::lock_guard lock(mutex_);
    auto place = std::find_if(loaded_.begin(), loaded_.end(), [&](const auto& one) { return one->path == path; });
    if (place == loaded_.end()) {
      auto fresh = std::make_shared<Loaded>(Loaded{path, torch::jit::load(path, c10::kCPU)});
      for (const at::Tensor& parameter : fresh->module.parameters()) {
        fresh->bytes += parameter.nbytes();
      }
      while (!loaded_.empty() && taken_ + fresh->bytes > budget_) {
        taken_ -= loaded_.back()->bytes;
        loaded_.pop_back();
      }
      fresh->module.to(device_);
      wait();
      taken_ += fresh->bytes;
      loaded_.push_front(std::move(fresh));
      place = loaded_.begin();
    }
    loaded_.splice(loaded_.begin(), loaded_, place);
    return loaded_.front();
  }

  /// For work of this thread: others use what it has moved, or drop what it has used.
  void wait() const {
    if (device_.is_cuda()) {
      c10::cuda::getCurrentCUDAStream(device_.index()).synchronize();
    }
  }

  const c10::Device device_;
  const std::uint64_t budget_;
  std::mutex mutex_;
  std::list<std::shared_ptr<Loaded>> loaded_; // the last one that was called first
  std::uint64_t taken_ = 0;
};

} // namespace offload::test
