#pragma once

#include <torch/csrc/jit/testing/file_check.h>

#include <functional>
#include <string>

namespace offload {

using torch::jit::testing::FileCheck;

/// IR as text has what `expect` asks for, in that order.
inline void check(const std::string& text, const std::function<void(FileCheck&)>& expect) {
  FileCheck checks;
  expect(checks);
  checks.run(text);
}

} // namespace offload
