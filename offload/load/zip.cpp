#include <offload/load/zip.h>

#include <zlib.h>

#include <algorithm>
#include <cstring>
#include <unordered_set>

#include <offload/bytes.h>
#include <offload/error.h>

namespace offload {

namespace {

constexpr std::uint16_t kDeflated = 8;
constexpr std::uint64_t kMostDirectoryBytes = 256_MiB;
constexpr std::uint64_t kHeaderBytes = 30; // of a record, before its name
constexpr std::uint64_t kEntryBytes = 46;  // of the directory, before its name
constexpr std::uint64_t kEndBytes = 22;
constexpr std::uint64_t kLocatorBytes = 20;
constexpr std::uint64_t kEnd64Bytes = 56;
constexpr std::uint32_t kElsewhere = 0xFFFFFFFF; // a number that does not fit 32 bits

/// A part of the file, and numbers in it.
class Part {
 public:
  Part(const File& file, std::uint64_t offset, std::uint64_t bytes) : path_(file.path()), bytes_(bytes, '\0') {
    file.read(bytes_.data(), offset, bytes);
  }

  std::uint16_t u16(std::uint64_t at) const { return number<std::uint16_t>(at); }
  std::uint32_t u32(std::uint64_t at) const { return number<std::uint32_t>(at); }
  std::uint64_t u64(std::uint64_t at) const { return number<std::uint64_t>(at); }
  std::string_view part(std::uint64_t at, std::uint64_t bytes) const {
    if (at > bytes_.size() || bytes_.size() - at < bytes) {
      throw ArchiveError(path_ + ": the directory of the archive is cut short");
    }
    return std::string_view(bytes_).substr(at, bytes);
  }
  bool has_mark(std::uint64_t at, std::string_view mark) const { return part(at, mark.size()) == mark; }
  std::size_t last(std::string_view mark, std::size_t from) const { return bytes_.rfind(mark, from); }

 private:
  template <typename Number>
  Number number(std::uint64_t at) const {
    Number number;
    std::memcpy(&number, part(at, sizeof number).data(), sizeof number); // little-endian, as this machine
    return number;
  }

  const std::string& path_;
  std::string bytes_;
};

struct Directory {
  std::uint64_t offset;
  std::uint64_t bytes;
  std::uint64_t records;
};

/// By the last mark of an end in the file, as PyTorch's reader has it.
Directory find_directory(const File& file) {
  const std::uint64_t tail_bytes = std::min<std::uint64_t>(file.size(), kLocatorBytes + kEndBytes + 65535);
  const Part tail(file, file.size() - tail_bytes, tail_bytes);
  const std::size_t end = tail_bytes < kEndBytes ? std::string::npos : tail.last("PK\5\6", tail_bytes - kEndBytes);
  if (end == std::string::npos) {
    throw ArchiveError(file.path() + ": the archive is damaged or cut short: copy it again, or export the model anew");
  }
  const auto require_one_part = [&](std::uint32_t part, std::uint32_t first_part, std::uint64_t records_here,
                                    std::uint64_t records) {
    if (part != 0 || first_part != 0 || records_here != records) {
      throw ArchiveError(file.path() + ": is one of several parts of an archive");
    }
  };
  require_one_part(tail.u16(end + 4), tail.u16(end + 6), tail.u16(end + 8), tail.u16(end + 10));
  Directory directory{tail.u32(end + 16), tail.u32(end + 12), tail.u16(end + 10)};
  std::uint64_t limit = file.size() - tail_bytes + end; // where it has to end
  if (end >= kLocatorBytes && tail.has_mark(end - kLocatorBytes, "PK\6\7")) {
    const std::uint64_t end64 = tail.u64(end - kLocatorBytes + 8);
    require_one_part(tail.u32(end - kLocatorBytes + 4), 0, tail.u32(end - kLocatorBytes + 16), 1);
    if (limit < kLocatorBytes + kEnd64Bytes || end64 > limit - kLocatorBytes - kEnd64Bytes) {
      throw ArchiveError(file.path() + ": the directory of the archive lies outside it");
    }
    const Part numbers(file, end64, kEnd64Bytes);
    if (numbers.has_mark(0, "PK\6\6")) {
      if (numbers.u64(4) < kEnd64Bytes - 12) {
        throw ArchiveError(file.path() + ": the directory of the archive is damaged");
      }
      require_one_part(numbers.u32(16), numbers.u32(20), numbers.u64(24), numbers.u64(32));
      directory = {numbers.u64(48), numbers.u64(40), numbers.u64(32)};
      limit = end64;
    }
  }
  if (directory.offset > limit || limit - directory.offset < directory.bytes) {
    throw ArchiveError(file.path() + ": the directory of the archive lies outside it");
  }
  if (directory.bytes > kMostDirectoryBytes || directory.records > directory.bytes / kEntryBytes) {
    throw ArchiveError(file.path() + ": the directory of the archive says that " + std::to_string(directory.records) +
                       " records are listed in " + std::to_string(directory.bytes) + " bytes");
  }
  return directory;
}

/// Numbers that do not fit stand in a part of their own, in this order.
void read_large_numbers(const Part& directory, std::uint64_t at, std::uint64_t end, ZipRecord& record,
                        std::uint64_t& header) {
  while (end - at >= 4) {
    const auto kind = directory.u16(at);
    const std::uint64_t next = at + 4 + directory.u16(at + 2);
    at += 4;
    if (next > end) {
      return;
    }
    if (kind == 1) {
      for (std::uint64_t* number : {&record.bytes, &record.stored_bytes, &header}) {
        if (*number == kElsewhere && next - at >= 8) {
          *number = directory.u64(at);
          at += 8;
        }
      }
      return;
    }
    at = next;
  }
}

[[noreturn]] void refuse(const File& file, const ZipRecord& record, const std::string& what) {
  throw ArchiveError(file.path() + ": record " + record.name + " " + what);
}

/// Finds where the record's bytes begin: after its own header, which has to say the same as the directory.
void find_bytes(const File& file, ZipRecord& record, std::uint64_t header, std::uint64_t end) {
  if (header > end || end - header < kHeaderBytes + record.name.size()) {
    refuse(file, record, "lies outside the file");
  }
  const Part own(file, header, kHeaderBytes + record.name.size());
  if (!own.has_mark(0, "PK\3\4") || own.u16(26) != record.name.size() ||
      own.part(kHeaderBytes, record.name.size()) != record.name || own.u16(8) != record.method) {
    refuse(file, record, "is not where the directory says");
  }
  record.offset = header + kHeaderBytes + record.name.size() + own.u16(28);
  if (record.offset > end || end - record.offset < record.stored_bytes) {
    refuse(file, record, "lies outside the file");
  }
}

void check_sizes(const File& file, const ZipRecord& record, std::uint16_t flags) {
  constexpr std::uint64_t kMostPacked = 1032; // what deflate can do at best
  constexpr std::uint16_t kEncrypted = 1 | 0x40 | 0x2000;
  constexpr std::uint16_t kPatch = 0x20;
  if (flags & kEncrypted) {
    refuse(file, record, "is encrypted");
  }
  if (flags & kPatch) {
    refuse(file, record, "is a patch of another");
  }
  if (record.method != 0 && record.method != kDeflated) {
    refuse(file, record, "is packed by method " + std::to_string(record.method) + ", which is not supported");
  }
  const bool may_be =
      record.is_stored() ? record.bytes == record.stored_bytes : record.bytes / kMostPacked <= record.stored_bytes;
  if (!may_be) {
    refuse(file, record,
           "says that " + std::to_string(record.stored_bytes) + " bytes hold " + std::to_string(record.bytes));
  }
}

/// Where the header of a record begins, and the number of the record.
using Headers = std::vector<std::pair<std::uint64_t, std::size_t>>;

void check_overlaps(const File& file, const std::vector<ZipRecord>& records, Headers headers) {
  std::sort(headers.begin(), headers.end());
  for (std::size_t i = 1; i < headers.size(); ++i) {
    const ZipRecord& before = records[headers[i - 1].second];
    if (headers[i].first < before.offset + before.stored_bytes) {
      refuse(file, records[headers[i].second], "overlaps record " + before.name);
    }
  }
}

} // namespace

std::vector<ZipRecord> read_zip_directory(const File& file) {
  const Directory where = find_directory(file);
  const Part directory(file, where.offset, where.bytes);
  std::vector<ZipRecord> records;
  Headers headers;
  std::unordered_set<std::string> names;
  std::uint64_t at = 0;
  for (std::uint64_t i = 0; i < where.records; ++i) {
    if (!directory.has_mark(at, "PK\1\2")) {
      throw ArchiveError(file.path() + ": the directory of the archive is damaged");
    }
    ZipRecord record;
    const auto flags = directory.u16(at + 8);
    record.method = directory.u16(at + 10);
    record.crc = directory.u32(at + 16);
    record.stored_bytes = directory.u32(at + 20);
    record.bytes = directory.u32(at + 24);
    std::uint64_t header = directory.u32(at + 42);
    const std::uint64_t name_end = at + kEntryBytes + directory.u16(at + 28);
    const std::uint64_t extra_end = name_end + directory.u16(at + 30);
    record.name = directory.part(at + kEntryBytes, name_end - at - kEntryBytes);
    directory.part(name_end, extra_end - name_end);
    read_large_numbers(directory, name_end, extra_end, record, header);
    check_sizes(file, record, flags);
    if (directory.u16(at + 34) != 0) {
      refuse(file, record, "lies in another part of the archive");
    }
    find_bytes(file, record, header, where.offset);
    if (!names.insert(lower_case(record.name)).second) {
      refuse(file, record,
             "is there twice: by the same name, or in capitals, which PyTorch's reader does not tell apart");
    }
    constexpr std::uint32_t kFolder = 0x10;
    if ((directory.u32(at + 38) & kFolder) != 0 && record.bytes > 0) {
      refuse(file, record, "is a folder, and has bytes");
    }
    const auto comment_bytes = directory.u16(at + 32);
    directory.part(extra_end, comment_bytes);
    at = extra_end + comment_bytes;
    headers.emplace_back(header, records.size());
    records.push_back(std::move(record));
  }
  check_overlaps(file, records, std::move(headers));
  return records;
}

std::string read_zip_record(const File& file, const ZipRecord& record) {
  std::string stored(record.stored_bytes, '\0');
  file.read(stored.data(), record.offset, stored.size());
  std::string bytes;
  if (record.is_stored()) {
    bytes = std::move(stored);
  } else {
    bytes.resize(record.bytes);
    z_stream stream{};
    if (inflateInit2(&stream, -MAX_WBITS) != Z_OK) {
      throw Error("no memory to unpack record " + record.name + " of " + file.path());
    }
    // Sizes over 4 GiB do not fit what zlib counts in; what is packed is text, and tensors that somebody packed again.
    constexpr std::uint64_t kMost = 1ULL << 30;
    int status = Z_OK;
    while (status == Z_OK) {
      stream.next_in = reinterpret_cast<Bytef*>(stored.data() + stream.total_in);
      stream.avail_in = static_cast<uInt>(std::min(stored.size() - stream.total_in, kMost));
      stream.next_out = reinterpret_cast<Bytef*>(bytes.data() + stream.total_out);
      stream.avail_out = static_cast<uInt>(std::min(bytes.size() - stream.total_out, kMost));
      status = inflate(&stream, Z_NO_FLUSH);
    }
    inflateEnd(&stream);
    if (status != Z_STREAM_END || stream.total_out != bytes.size()) {
      refuse(file, record, "is damaged: it can not be unpacked");
    }
  }
  if (zip_crc(bytes) != record.crc) {
    refuse(file, record, "is damaged: its checksum is wrong; copy the archive again, or export the model anew");
  }
  return bytes;
}

std::string lower_case(std::string_view name) {
  std::string lower(name);
  std::transform(lower.begin(), lower.end(), lower.begin(),
                 [](char c) { return 'A' <= c && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; });
  return lower;
}

std::uint32_t zip_crc(std::string_view bytes) {
  return static_cast<std::uint32_t>(crc32_z(0, reinterpret_cast<const Bytef*>(bytes.data()), bytes.size()));
}

} // namespace offload
