#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>

#include <offload/io/file.h>

namespace offload {

/// What the system does for reads of one file: the seam at which tests let them fail, come short, or take long.
/// Any thread may call. Destroying it waits for what was started, and for what `done` starts meanwhile.
class Disk {
 public:
  virtual ~Disk() = default;

  /// Reads what the page cache has at `offset`, as far as it goes without waiting for the disk: bytes, or -errno.
  virtual std::int64_t read_cached(std::byte* dst, std::uint64_t offset, std::uint64_t bytes) = 0;

  /// Bytes that were read, fewer where the file ends or the system saw fit, or -errno.
  using Done = std::function<void(std::int64_t result)>;

  /// Starts a read past the page cache; `done` is called once, from some thread. All of `dst`, `offset` and `bytes` are
  /// multiples of kDiskBlock.
  virtual void start(std::byte* dst, std::uint64_t offset, std::uint64_t bytes, Done done) = 0;
};

constexpr std::uint64_t kDiskBlock = 4096;

/// By io_uring, or, where the kernel refuses that, by as many threads as reads may be in flight.
enum class Reads { ring_or_threads, threads };
std::unique_ptr<Disk> make_disk(std::shared_ptr<const File> file, int reads_in_flight,
                                Reads reads = Reads::ring_or_threads);

} // namespace offload
