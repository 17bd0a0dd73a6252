#pragma once

#include <ATen/core/function_schema.h>
#include <ATen/core/ivalue.h>

#include <optional>
#include <string>
#include <vector>

namespace offload {

/// The outputs of an operator whose inputs have sizes only, where PyTorch itself does not tell: tensors on the device
/// meta. None where there is no rule for it. `arguments` are those of its schema.
std::optional<std::vector<c10::IValue>> output_of_rule(const c10::FunctionSchema& op,
                                                       const std::vector<c10::IValue>& arguments);

/// Multiplications and additions of an operator that multiplies matrices or convolves; 0 for all others.
double flops_of(const std::string& op, const std::vector<c10::IValue>& arguments,
                const std::vector<c10::IValue>& outputs);

} // namespace offload
