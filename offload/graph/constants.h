#pragma once

#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/ir/ir.h>

#include <vector>

namespace offload {

/// Turns constants of `graph` that are, or contain, tensors of 16 KiB or more into attributes of `holder`, read through
/// a last input that is added for them. Weights of a frozen module are such constants. A tensor that several constants
/// share becomes one attribute.
void take_constants(torch::jit::Graph& graph, torch::jit::Module& holder);

/// The constant tensors in the methods of `module` that take_constants() takes. Modules of the same type share their
/// methods, deep copies included.
std::vector<torch::jit::Node*> large_constants(const torch::jit::Module& module);

} // namespace offload
