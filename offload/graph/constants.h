#pragma once

#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/ir/ir.h>

#include <unordered_set>

#include <offload/graph/weights.h>

namespace offload {

/// Storages, by their address.
using Storages = std::unordered_set<const void*>;

/// Storages of constant tensors that a call of `graph` may write. A trace has them where the model wrote in place to a
/// tensor that was neither parameter nor buffer.
Storages written_constants(torch::jit::Graph& graph);

/// Turns constants of `graph` into attributes of `holder`, read through a last input that is added for them: those that
/// are, or contain, tensors of 16 KiB or more, or tensors of which the storage is `written`. Weights of a frozen module
/// are such constants. A tensor that several constants share becomes one attribute.
void take_constants(torch::jit::Graph& graph, torch::jit::Module& holder, const Storages& written = {});

/// Puts `replace(tensor)` in the place of constant tensors of 16 KiB or more in the methods of `module`. Modules of the
/// same type share their methods, deep copies included.
void replace_large_constants(const torch::jit::Module& module, const Replace& replace);

} // namespace offload
