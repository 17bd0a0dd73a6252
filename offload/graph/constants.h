#pragma once

#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/ir/ir.h>

#include <functional>

namespace offload {

/// Turns constants of `graph` that are, or contain, tensors of 16 KiB or more into attributes of `holder`, read through
/// a last input that is added for them. Weights of a frozen module are such constants. A tensor that several constants
/// share becomes one attribute.
void take_constants(torch::jit::Graph& graph, torch::jit::Module& holder);

/// Puts `replace(tensor)` in the place of the constant tensors that take_constants() took from the methods of `module`.
/// Modules of the same type share their methods, deep copies included.
void replace_constants(const torch::jit::Module& module, const std::function<at::Tensor(const at::Tensor&)>& replace);

} // namespace offload
