#pragma once

// The simplest model whose weights can be larger than a device: residual
// layers, each as costly to bring as to compute.

#include <cstdint>

#include <c10/core/Device.h>
#include <c10/core/ScalarType.h>
#include <torch/csrc/jit/api/module.h>

namespace offload::models {

struct StackOptions {
  std::int64_t layers = 64;
  std::int64_t features = 4096;
  bool bias = false;
  at::ScalarType dtype = at::kFloat;
  c10::Device device = at::kCPU; // where the weights are made, and stay
  std::uint64_t seed = 0;
};

/// `layers` times x = x + linear(x). Input and output are [..., features] of
/// the same dtype. The weights, `layers.0.weight` and on, are [features,
/// features], the biases [features]: normal with standard deviation 0.02 /
/// sqrt(features), so that the sum neither grows nor vanishes over hundreds of
/// layers. Throws c10::Error where memory does not suffice.
torch::jit::Module residual_stack(const StackOptions& options);

} // namespace offload::models
