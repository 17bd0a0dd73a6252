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

/// Reads a TorchScript archive as torch::jit::load does; its bytes are not trusted. Large tensors stay on the file
/// where nothing reads them during the import: see Note [An archive that imitates an archive] in outline.h. Throws
/// ArchiveError, which says what `path` is when it is no such archive, or is from before PyTorch 1.4, and what is wrong
/// with one that is damaged.
///
/// It is exported for tests and tools; this header is not installed.
OFFLOAD_API torch::jit::Module read_archive(const std::string& path, Weights weights = Weights::in_memory);

} // namespace offload
