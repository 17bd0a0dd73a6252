#pragma once

#include <ATen/core/ivalue.h>

#include <string>

namespace offload::tools {

/// Compares two values bit by bit, containers element by element. Empty when they are the same; else where and how they
/// first differ.
std::string first_difference(const c10::IValue& actual, const c10::IValue& expected,
                             const std::string& where = "output");

} // namespace offload::tools
