#pragma once

#include <torch/csrc/jit/api/module.h>

#include <string>

#include <offload/export.h>

namespace offload {

/// Where the bytes of large tensors are once an archive has been read.
enum class Weights {
  in_memory,
  on_file, ///< a module for offload::wrap only: whoever reads a tensor that is still there gets an error
};

/// Reads a TorchScript archive as torch::jit::load does; its bytes are not trusted. Tensors stay on the file where
/// nothing may read them during the import: not in archives with quantised or sparse tensors, or code of their
/// own that runs then (`__setstate__`). Throws ArchiveError that says what `path` is when it is none, or one from
/// before PyTorch 1.4, and what is wrong with it.
OFFLOAD_API torch::jit::Module read_archive(const std::string& path, Weights weights = Weights::in_memory);

} // namespace offload
