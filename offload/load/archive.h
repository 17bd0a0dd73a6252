#pragma once

#include <torch/csrc/jit/api/module.h>

#include <string>

#include <offload/export.h>

namespace offload {

/// Reads a TorchScript archive into host memory. Throws ArchiveError that says what `path` is when it is none.
OFFLOAD_API torch::jit::Module read_archive(const std::string& path);

} // namespace offload
