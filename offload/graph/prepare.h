#pragma once

#include <c10/core/Device.h>
#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/ir/ir.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <offload/graph/attributes.h>
#include <offload/graph/weights.h>

namespace offload {

/// The graph of a method as both the run and its reference start from: copied, inlined, autocast made explicit. The
/// first input is the module.
std::shared_ptr<torch::jit::Graph> prepare_method(const torch::jit::Module& module, const std::string& method);

/// Gives a tensor on another device. Where graphs share a constant that is written, it has to give them the same one.
using Move = std::function<at::Tensor(const at::Tensor&)>;

/// Turns constant tensors and `Device` constants that differ from `device` into ones that do not: what
/// `torch::jit::load(path, device)` does with the tensors, and leaves undone with the devices. Each is told in
/// `rewritten`. Tensors become what `move` makes of them.
void rewrite_devices(const std::shared_ptr<torch::jit::Graph>& graph, c10::Device device, const Move& move,
                     std::vector<std::string>& rewritten);

/// Replaces attributes of simple type (bool, int, float, str, None) that are not `written` by their values,
/// and what a call is always run under (no gradients) by its answer; then removes the branches that this decides.
void fold_attributes(std::shared_ptr<torch::jit::Graph>& graph, const Holders& holders, const AttributeNames& written);

} // namespace offload
