#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include <offload/core/link.h>
#include <offload/core/team.h>
#include <offload/feed/host_fill.h>
#include <offload/io/cache_window.h>
#include <offload/io/file_reader.h>
#include <offload/ring/store.h>

namespace offload {

/// Where the bytes of a weight are on the host: in memory, or in the file of the store's reader.
struct HostPlace {
  const std::byte* memory = nullptr; ///< null when in the file, or when the weight never streams
  std::uint64_t offset = 0;          ///< in the file
  std::uint64_t bytes = 0;           ///< in the file; what is fetched beyond them has no meaning

  bool in_file() const { return bytes > 0; }
};

inline HostPlace in_memory(const std::byte* memory) { return {memory, 0, 0}; }

/// By weight, readable for as long as the store lives.
using HostPlaces = std::vector<HostPlace>;

/// A store of page-locked memory, none of it in a file (or, for a link within the host, of any memory): the link reads
/// straight from it. Neighbours in both host memory and ring become one copy. `fill`, where there is one, is waited
/// for.
std::unique_ptr<Store> make_direct_store(Link& link, HostPlaces host, std::byte* ring, HostFill* fill = nullptr);

/// Page-locked memory that bytes pass through on the way to the link.
struct StagingBuffers {
  std::byte* data;
  std::uint64_t buffer_bytes;
  int count; ///< at least 2; 0 where the ring is host memory: it is filled in place
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

/// What a staged store works with besides memory; what it points to outlives the store.
struct StagedSources {
  FileReader* reader = nullptr; ///< null when no weight lies in a file
  HostFill* fill = nullptr;     ///< what is in memory is waited for, where there is one

  /// Copies of what the page cache has are left to those who wait for batches, who make them with the team, where there
  /// is one: it is for where threads of the store would be in their way.
  Team team = {};

  /// Weights of the file stay in the page cache where this can map them. For a host that is its own device: readers of
  /// a place are done when it is given to others.
  std::unique_ptr<CacheWindow> window = nullptr;
};

/// A store of ordinary memory and of a file: `threads` threads bring bytes to the staging buffers ahead of the link.
/// Weights for which `direct` is true are page-locked where they lie and take part in the same order without being
/// staged. `staging` outlives the store; what happens in it is over when the destructor returns.
std::unique_ptr<Store> make_staged_store(Link& link, HostPlaces host, std::vector<bool> direct, std::byte* ring,
                                         StagingBuffers staging, int threads, StagedSources sources = {});

} // namespace offload
