#pragma once

#include <zlib.h>

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <offload/load/zip.h>

namespace offload::test {

/// What a zip archive says of a record, right unless a test makes it wrong.
struct ZipEntry {
  std::string name;
  std::string bytes; // as they lie in the archive
  std::uint16_t method = 0;
  std::uint16_t flags = 0;
  std::optional<std::uint32_t> size = {};         // unpacked
  std::optional<std::uint32_t> stored = {};       // in the archive
  std::optional<std::uint32_t> header = {};       // where its header is
  std::optional<std::string> name_in_header = {}; // before its bytes
  std::optional<std::uint32_t> crc = {};
};

template <typename Number>
void put_number(std::string& to, Number number) {
  to.append(reinterpret_cast<const char*>(&number), sizeof number);
}

inline std::string make_zip(const std::vector<ZipEntry>& entries) {
  std::string file;
  std::string directory;
  for (const ZipEntry& entry : entries) {
    const auto begin = static_cast<std::uint32_t>(file.size());
    const auto put_sizes = [&](std::string& to, std::size_t name_bytes) {
      put_number(to, entry.flags);
      put_number(to, entry.method);
      put_number<std::uint32_t>(to, 0);
      put_number(to, entry.crc.value_or(zip_crc(entry.bytes)));
      put_number(to, entry.stored.value_or(static_cast<std::uint32_t>(entry.bytes.size())));
      put_number(to, entry.size.value_or(static_cast<std::uint32_t>(entry.bytes.size())));
      put_number(to, static_cast<std::uint16_t>(name_bytes));
      put_number<std::uint16_t>(to, 0);
    };
    const std::string own = entry.name_in_header.value_or(entry.name);
    file += "PK\3\4";
    put_number<std::uint16_t>(file, 20);
    put_sizes(file, own.size());
    file += own + entry.bytes;
    directory += "PK\1\2";
    put_number<std::uint16_t>(directory, 20);
    put_number<std::uint16_t>(directory, 20);
    put_sizes(directory, entry.name.size());
    put_number<std::uint16_t>(directory, 0);
    put_number<std::uint16_t>(directory, 0);
    put_number<std::uint16_t>(directory, 0);
    put_number<std::uint32_t>(directory, 0);
    put_number(directory, entry.header.value_or(begin));
    directory += entry.name;
  }
  const std::size_t at = file.size();
  file += directory + "PK\5\6";
  put_number<std::uint32_t>(file, 0);
  put_number(file, static_cast<std::uint16_t>(entries.size()));
  put_number(file, static_cast<std::uint16_t>(entries.size()));
  put_number(file, static_cast<std::uint32_t>(directory.size()));
  put_number(file, static_cast<std::uint32_t>(at));
  put_number<std::uint16_t>(file, 0);
  return file;
}

/// The same, packed.
inline ZipEntry deflated(ZipEntry entry) {
  const std::string& bytes = entry.bytes;
  std::string packed(compressBound(bytes.size()) + 16, '\0');
  z_stream stream{};
  deflateInit2(&stream, Z_DEFAULT_COMPRESSION, Z_DEFLATED, -MAX_WBITS, 8, Z_DEFAULT_STRATEGY);
  stream.next_in = reinterpret_cast<Bytef*>(entry.bytes.data());
  stream.avail_in = static_cast<uInt>(bytes.size());
  stream.next_out = reinterpret_cast<Bytef*>(packed.data());
  stream.avail_out = static_cast<uInt>(packed.size());
  deflate(&stream, Z_FINISH);
  packed.resize(stream.total_out);
  deflateEnd(&stream);
  entry.crc = zip_crc(bytes);
  entry.size = static_cast<std::uint32_t>(bytes.size());
  entry.method = 8;
  entry.bytes = std::move(packed);
  return entry;
}

} // namespace offload::test
