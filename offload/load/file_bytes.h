#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <string>

#include <offload/io/file.h>

namespace offload {

/// Where the bytes of a storage lie that has no memory.
struct FileBytes {
  std::shared_ptr<const File> file;
  std::uint64_t offset;
  std::uint64_t bytes;
};

/// Frees the memory of `storage`: its bytes are those of the file. Reading it is an error that names it.
void make_file_backed(const c10::Storage& storage, FileBytes bytes, const std::string& name);

/// Null when the storage has memory, or when its bytes are nowhere.
const FileBytes* file_bytes(const c10::Storage& storage);

} // namespace offload
