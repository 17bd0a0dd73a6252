#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

namespace offload {

/// A regular file. It stays the file that was opened, also when another takes its name. Any thread may call.
class File {
 public:
  /// Throws ArchiveError.
  explicit File(std::string path);
  ~File();
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  const std::string& path() const { return path_; }
  std::uint64_t size() const { return size_; }
  int descriptor() const { return descriptor_; }

  /// For reads past the page cache; -1 where the file system has none.
  int direct_descriptor() const { return direct_; }

  /// Reads all of [offset, offset + bytes). Throws ArchiveError when the file ends before, or can not be read.
  void read(void* dst, std::uint64_t offset, std::uint64_t bytes) const;

  /// Throws ArchiveError when the file is no longer what it was when it was opened, by size and time.
  void check_unchanged() const;

  /// How many bytes from `offset` on, at most `bytes`, the page cache has. Asking brings none there, unlike a read.
  /// None where the system does not tell, as of files of others that this user may not write.
  std::optional<std::uint64_t> cached_bytes(std::uint64_t offset, std::uint64_t bytes) const;

  /// The share of it that the page cache has, from some samples.
  double cached_share() const;

  /// Where the bytes of a range are mapped, for as long as the file lives. Null where samples show that they are not in
  /// the page cache, or where the file is not mapped, as on a network file system. Whoever reads there gets a signal
  /// (SIGBUS) when the file has been cut short or its disk fails, and other bytes when somebody has overwritten it.
  const std::byte* mapped_if_cached(std::uint64_t offset, std::uint64_t bytes) const;

  /// True for addresses of the mapping.
  bool contains(const void* address) const;

  /// The error for a read that failed: `result` as the system gave it, a negative error number, or too few bytes.
  std::string explain(std::uint64_t offset, std::uint64_t bytes, std::int64_t result) const;

 private:
  bool is_cached_at(std::uint64_t offset) const;

  std::string path_;
  int descriptor_ = -1;
  int direct_ = -1;
  std::uint64_t size_ = 0;
  timespec modified_{};
  const std::byte* mapped_ = nullptr; // null where it could not be, or is on another machine
  bool mincore_tells_ = false;        // what of the mapping is cached
  bool was_cached_ = false;           // most of it, when it was opened: for where mincore() does not tell
};

/// With a larger share cached, a host that is its own device counts a file as cached: it does not wait for the disk.
constexpr double kMostlyCached = 0.5;

/// What is read where it is mapped takes no time beside that of whoever computes with it.
constexpr double kMappedBytesPerUs = 1e6;

} // namespace offload
