#pragma once

// Parameters of the models made here. A model is first put together of tensors
// without memory (device `meta`), so that its size is known at once and blocks
// can be copied for nothing; then all parameters get their values in one
// parallel sweep.

#include <cstdint>

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>
#include <torch/csrc/jit/api/module.h>

namespace offload::models {

/// A parameter without memory, on the device `meta`, that wants no gradient.
at::Tensor declare(at::IntArrayRef sizes, at::ScalarType dtype);

/// Bytes of all parameters, with or without memory. Each storage counts once: a
/// tied weight has two names and one storage.
std::uint64_t parameter_bytes(const torch::jit::Module& module);

/// Gives memory on `device` and values to every parameter that is on `meta`;
/// tied ones stay tied. Weights of norms (one dimension, named `weight`)
/// become 1. Other floating point parameters are normal with standard deviation
/// `std`, integers uniform in [-2, 2]. The values on the host depend on `seed`
/// and the parameter's place in the module, not on the number of threads.
void initialize(torch::jit::Module& module, double std, c10::Device device, std::uint64_t seed);

} // namespace offload::models
