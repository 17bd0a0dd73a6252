#pragma once

#include <exception>
#include <functional>
#include <memory>
#include <vector>

#include <offload/core/mutex.h>
#include <offload/error.h>
#include <offload/io/disk.h>

namespace offload {

/// An error of this type, or what keeps one from being made.
template <typename AnError>
std::exception_ptr failure_of(const auto& what) {
  try {
    return std::make_exception_ptr(AnError(what));
  } catch (...) {
    return std::current_exception();
  }
}

/// Brings ranges of a file to memory, several at a time: from the page cache where it has them, else past it, so that
/// memory is what we count and not what the cache keeps. Any thread may call.
class FileReader {
 public:
  /// One read; longer ranges are for the caller to cut.
  static constexpr std::uint64_t kMostBytes = 1ULL << 20;
  static constexpr int kReadsInFlight = 8;

  /// Memory that it holds: reads past the cache go to buffers that are aligned, and are copied from there.
  static constexpr std::uint64_t kBufferBytes = kMostBytes + 2 * kDiskBlock;
  static constexpr std::uint64_t kBytesHeld = kReadsInFlight * kBufferBytes;

  FileReader(std::shared_ptr<const File> file, std::unique_ptr<Disk> disk);
  ~FileReader();
  FileReader(const FileReader&) = delete;
  FileReader& operator=(const FileReader&) = delete;

  /// An ArchiveError, which is the callee's alone, or null when all went well. It throws nothing.
  using Done = std::function<void(std::exception_ptr failure)>;

  /// Reads [offset, offset + bytes), at most kMostBytes, into `dst`. `done` is called once, before this function
  /// returns or later from another thread; until then `dst` belongs to the reader. Waits while as many reads are in
  /// flight as may be. When it throws, nothing is under way, and `done` is not called.
  void read(std::byte* dst, std::uint64_t offset, std::uint64_t bytes, Done done);

  /// Reads a range of any length and waits for it. Throws ArchiveError.
  void read_all(std::byte* dst, std::uint64_t offset, std::uint64_t bytes);

 private:
  struct Read {
    std::byte* dst;
    std::uint64_t offset;
    std::uint64_t bytes;
    Done done;
    std::byte* buffer = nullptr;
    std::uint64_t begin = 0; // of what is read, a whole number of blocks
    std::uint64_t end = 0;
    std::uint64_t have = 0; // of it so far
  };

  void start(const std::shared_ptr<Read>& read);
  bool resume(const std::shared_ptr<Read>& read, std::int64_t result);
  void finish(const Read& read, std::exception_ptr failure);
  void release_buffer(const Read& read);

  const std::shared_ptr<const File> file_;
  std::byte* buffers_ = nullptr;
  Mutex mutex_;
  Condition freed_;
  std::vector<std::byte*> free_ OFFLOAD_GUARDED_BY(mutex_);
  std::unique_ptr<Disk> disk_; // goes first: it calls back
};

} // namespace offload
