#pragma once

#include <c10/core/Device.h>
#include <torch/csrc/jit/ir/ir.h>

#include <optional>

namespace offload {

// Where operators want their tensors, and where they leave them. An operator that is not named here gives its results
// where its tensors are.

/// What becomes of an input, a tensor, that is not on the host.
enum class Wanted {
  anywhere,     ///< it is where the other inputs are
  on_host,      ///< the operator refuses it, whatever device it runs on
  kernels_host, ///< the operator has no kernels but those of the host
  apart,        ///< it may be where it is, and does not decide where results are
};

Wanted wanted_of(const torch::jit::Node* node, std::size_t input, c10::Device device);

/// Results that are on the host wherever the inputs are.
bool gives_on_host(const torch::jit::Node* node, std::size_t output);

/// Its result is a scalar, which other operators take from any device.
bool gives_scalar(const torch::jit::Node* node);

/// Looks up elements of its first input by the indices in its second: if the first is on the host, the second has to
/// be.
bool looks_up_by_index(const torch::jit::Node* node);

/// The input that names the device of the result. None when there is no such.
std::optional<std::size_t> device_input(const torch::jit::Node* node);

/// Makes a tensor of which nothing depends on the device that it is made on, as random numbers do.
bool is_factory(const torch::jit::Node* node);

} // namespace offload
