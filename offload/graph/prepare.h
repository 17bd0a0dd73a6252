#pragma once

#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/ir/ir.h>

#include <memory>
#include <string>

#include <offload/graph/attributes.h>
#include <offload/graph/weights.h>
#include <offload/options.h>

namespace offload {

/// The graph of a method as both the run and its reference start from: copied, inlined, autocast made explicit. The
/// first input is the module.
std::shared_ptr<torch::jit::Graph> prepare_method(const torch::jit::Module& module, const std::string& method);

/// Replaces attributes of simple type (bool, int, float, str, None) that are not `written` by their values, and
/// questions whether gradients are on by the answer, where that is always the same. Then removes the branches that this
/// decides.
void fold_attributes(std::shared_ptr<torch::jit::Graph>& graph, const Holders& holders, const AttributeNames& written,
                     Gradients gradients = Gradients::off);

} // namespace offload
