#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>
#include <torch/csrc/jit/ir/ir.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace offload {

/// Gives a tensor on another device. Where graphs share a constant that is written, it has to give them the same one.
using Move = std::function<at::Tensor(const at::Tensor&)>;

/// Makes a graph that was traced on the CPU run on `device`. Constant tensors, and constants that name the CPU, become
/// ones of `device`; `torch::jit::load(path, device)` does so with the tensors only. `move` moves the tensors.
///
/// Some operators take a tensor from the host only, as `_pack_padded_sequence` does its lengths. Constants that put it
/// there stay as they are, unless what they put there meets tensors of the device in another operator as well: then
/// they change, and the operator gets a copy on the host. Where such a tensor is on the device to begin with, it gets
/// one, too. A tensor that is made without a word about the device, and meets tensors of the device, is made there.
///
/// Each change is reported in `rewritten`.
void rewrite_devices(const std::shared_ptr<torch::jit::Graph>& graph, c10::Device device, const Move& move,
                     std::vector<std::string>& rewritten);

} // namespace offload
