#pragma once

#include <torch/csrc/jit/ir/ir.h>
#include <torch/csrc/jit/runtime/interpreter.h>

#include <memory>
#include <optional>
#include <vector>

#include <offload/graph/lowered_method.h>

namespace offload {

struct LoweredMethod::Code {
  std::shared_ptr<torch::jit::Graph> lowered; ///< leases all its weights
  std::optional<torch::jit::Code> placed;     ///< leases those that are not resident; none while nothing is placed
};

/// As LoweredMethod::run() does.
c10::IValue run_code(const torch::jit::Code& code, std::vector<c10::IValue> stack, bool gradients);

} // namespace offload
