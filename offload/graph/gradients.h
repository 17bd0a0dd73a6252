#pragma once

#include <torch/csrc/jit/ir/ir.h>

#include <offload/graph/lowered_method.h>
#include <offload/options.h>

namespace offload {

/// Asks whether gradients are on.
inline const c10::Symbol kIsGradEnabled = c10::Symbol::fromQualString("aten::is_grad_enabled");

/// Calls torch.autograd.grad, or backward().
bool differentiates(const torch::jit::Node* node);

Differentiates differentiates(torch::jit::Graph& graph);

/// What a method runs under, by what it does before branches that attributes decide are gone.
Gradients gradients_of(torch::jit::Graph& graph, Gradients wanted);

/// Turns gradients on or off, or may do so in a class of the model's own.
bool sets_gradients(torch::jit::Graph& graph);

/// May turn gradients on where they were off.
bool enables_gradients(torch::jit::Graph& graph);

} // namespace offload
