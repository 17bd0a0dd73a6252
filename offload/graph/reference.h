#pragma once

#include <ATen/core/ivalue.h>
#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/runtime/interpreter.h>

#include <map>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include <offload/export.h>
#include <offload/graph/make_program.h>
#include <offload/options.h>

namespace offload {

/// The reference for every promise of exactness: the same graph, not lowered, run on a module that is wholly on its
/// device. The module that is given is moved there: parameters, buffers and every other tensor.
///
/// It is exported for tests and tools; this header is not installed.
class OFFLOAD_API Reference {
 public:
  Reference(torch::jit::Module module, c10::Device device, DeviceConstants constants = DeviceConstants::rewrite,
            Gradients gradients = Gradients::off);
  c10::IValue run(const std::string& method, std::vector<c10::IValue> inputs,
                  const std::unordered_map<std::string, c10::IValue>& kwargs = {});

 private:
  at::Tensor moved(const at::Tensor& tensor);

  torch::jit::Module module_;
  std::unordered_map<const void*, std::pair<c10::Storage, c10::Storage>> moved_; // from, kept for its address, and to
  std::map<std::string, std::pair<torch::jit::Code, Gradients>> codes_;
  c10::Device device_;
  DeviceConstants constants_;
  Gradients gradients_;
};

} // namespace offload
