#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include <offload/io/file.h>

namespace offload {

/// A record of a zip archive.
struct ZipRecord {
  std::string name;
  std::uint64_t offset;       ///< of its bytes in the file
  std::uint64_t stored_bytes; ///< as they lie there
  std::uint64_t bytes;        ///< once they are unpacked
  std::uint16_t method;
  std::uint32_t crc;

  bool is_stored() const { return method == 0; }
};

/// The records that the archive's directory lists, in its order. Each lies within the file, on bytes that belong to no
/// other, under the name that its own header gives; no name is there twice, in capitals or not, and none claims to
/// unpack to more than its bytes can hold. Reads headers only. Throws ArchiveError that says what is wrong.
/// Source of the format: PKWARE's APPNOTE 6.3.
std::vector<ZipRecord> read_zip_directory(const File& file);

/// The bytes of a record, unpacked; their checksum is what the directory says. Throws ArchiveError.
std::string read_zip_record(const File& file, const ZipRecord& record);

/// The name as PyTorch's reader compares it: A to Z count as a to z.
std::string lower_case(std::string_view name);

/// CRC-32 as zip archives use it.
std::uint32_t zip_crc(std::string_view bytes);

} // namespace offload
