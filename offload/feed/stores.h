#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include <offload/core/link.h>
#include <offload/feed/host_fill.h>
#include <offload/io/file_reader.h>
#include <offload/ring/store.h>

namespace offload {

/// How the bytes of one module's weights are had. It outlives the stores that use it.
struct HostSource {
  FileReader* reader = nullptr;                 ///< null when no weight lies in a file
  HostFill* fill = nullptr;                     ///< what is in memory is waited for, where there is one
  std::shared_ptr<const File> mapped = nullptr; ///< on a host, what the page cache has is read where it is mapped
};

/// Where the bytes of a weight are on the host: in memory, or in a file.
struct HostPlace {
  const std::byte* memory = nullptr;  ///< null when in the file, or when the weight never streams
  std::uint64_t offset = 0;           ///< in the file
  std::uint64_t bytes = 0;            ///< in the file; what is fetched beyond them has no meaning
  bool direct = false;                ///< the link reads it where it is in memory: page-locked as a whole
  const HostSource* source = nullptr; ///< null for memory that is there

  bool in_file() const { return bytes > 0; }
  bool is_mapped() const { return in_file() && source->mapped; }

  /// Waits until `count` bytes from its beginning on are in memory.
  void await_bytes(std::uint64_t count) const {
    if (source && source->fill) {
      source->fill->await_bytes(memory + count);
    }
  }
};

inline HostPlace in_memory(const std::byte* memory, bool direct = false, const HostSource* source = nullptr) {
  return {memory, 0, 0, direct, source};
}

inline HostPlace in_file(const HostSource& source, std::uint64_t offset, std::uint64_t bytes) {
  return {nullptr, offset, bytes, false, &source};
}

/// By weight, readable for as long as the store lives.
using HostPlaces = std::vector<HostPlace>;

/// Of page-locked memory, none of it in a file (or, for a link within the host, of any memory): the link reads straight
/// from it. Neighbours in both host memory and ring become one copy.
std::unique_ptr<Store> make_direct_store(Link& link, HostPlaces host, std::byte* ring);

/// Page-locked memory that bytes pass through on the way to the link.
struct StagingBuffers {
  std::byte* data;
  std::uint64_t buffer_bytes;
  int count; ///< at least 2
};

/// Few and small on purpose: they stay in the processor's cache, where threads write them and the link reads them
/// faster than memory could take it. Measured on 16 cores, on a link of 55 GB/s: 54 through 32 MiB, 50 to 52 through
/// 16, 42 through 256, and 35 with stores that pass the cache.
constexpr std::uint64_t kStagingBytes = 32ULL << 20;
constexpr int kStagingBuffers = 4;

/// Less is refused: copies would be too small for the link.
constexpr std::uint64_t kLeastStagingBytes = 4ULL << 20;

/// Threads that fill staging buffers on this machine: three quarters of the processors, since callers and link need
/// some.
int staging_threads();

/// Of ordinary memory and of files: `threads` bring bytes to the staging buffers ahead of the link. Weights whose
/// places are direct take part in the same order without being staged. `staging` outlives the store; what happens in it
/// is over when the destructor returns.
std::unique_ptr<Store> make_staged_store(Link& link, HostPlaces host, std::byte* ring, StagingBuffers staging,
                                         int threads);

/// For a host that is its own device: `threads` bring bytes to their places in the ring, and the link counts them. No
/// place on the host is direct. What the page cache has of a file that is mapped is only counted.
std::unique_ptr<Store> make_in_place_store(Link& link, HostPlaces host, std::byte* ring, int threads);

} // namespace offload
