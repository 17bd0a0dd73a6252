#pragma once

#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/ir/ir.h>

#include <memory>

namespace offload {

/// Puts the body of every function, method, fork and interface method that `graph` calls in the place of the call.
/// The first input of `graph` is `module`.
///
/// A fork runs where it stands, on the caller's thread; its future is complete at once. A call through an interface
/// becomes a choice among the modules in `module` that implement it, distinguished by identity; a target that is none
/// of them raises an error. What recurses without end through an interface is left as a call.
void inline_calls(const std::shared_ptr<torch::jit::Graph>& graph, const torch::jit::Module& module);

} // namespace offload
