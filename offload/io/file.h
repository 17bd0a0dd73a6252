#pragma once

#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <string>

namespace offload {

/// A regular file that is read by offset, not through a mapping: a file that shrinks or a disk that fails is then an
/// error, and no signal. (It is mapped, but only to ask what the page cache has of it; see CacheWindow.) It stays the
/// file that was opened, also when another takes its name. Any thread may call.
class File {
 public:
  /// Throws ArchiveError.
  explicit File(std::string path);
  ~File();
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  const std::string& path() const { return path_; }
  std::uint64_t size() const { return size_; }

  /// For reads past the page cache; -1 where the file system has none.
  int direct_descriptor() const { return direct_; }
  int descriptor() const { return descriptor_; }

  /// Reads all of [offset, offset + bytes). Throws ArchiveError when the file ends before, or can not be read.
  void read(void* dst, std::uint64_t offset, std::uint64_t bytes) const;

  /// Throws ArchiveError when the file is no longer what it was when it was opened, by size and time.
  void check_unchanged() const;

  /// How many bytes from `offset` on, at most `bytes`, the page cache has; asking brings none there, as trying to read
  /// would. None where the system does not tell: of files of others that may not be written, for one.
  std::optional<std::uint64_t> cached_bytes(std::uint64_t offset, std::uint64_t bytes) const;

  /// The share of it that the page cache has, from some samples.
  double cached_share() const;

  /// The error for a read that failed: `result` as the system gave it, a negative error number, or too few bytes.
  std::string explain(std::uint64_t offset, std::uint64_t bytes, std::int64_t result) const;

 private:
  std::string path_;
  int descriptor_ = -1;
  int direct_ = -1;
  std::uint64_t size_ = 0;
  timespec modified_{};
  void* mapped_ = nullptr; // null where it could not be, or would tell nothing
};

/// With a larger share cached, a host that is its own device takes a file for cached; else its disk is what is waited
/// for.
constexpr double kMostlyCached = 0.5;

} // namespace offload
