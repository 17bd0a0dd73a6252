#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>

#include <offload/core/team.h>
#include <offload/io/file.h>
#include <offload/io/file_lease.h>

namespace offload {

/// Lets bytes of a file be read where the page cache has them, instead of a copy of them in a ring.
///
/// A mapping of a file raises SIGBUS when the file is cut short, or its disk fails. So a range is mapped only
/// while it has a place in the ring, only under a lease on the file, and locked in memory: its pages neither go away
/// nor have to come from the disk again. Whoever wants to write the file waits until all that is mapped has been
/// exchanged for copies, at the same addresses and under the eyes of those who read them; after that nothing is mapped
/// any more. What this cannot bear: a process that is stopped, or gets no memory for copies, for longer than the system
/// lets others wait (FileLease).
/// Any thread may call.
class CacheWindow {
 public:
  /// Smaller ranges are not worth it.
  static constexpr std::uint64_t kLeastBytes = 256ULL << 10;

  /// Null where there is no lease to be had, or no room for addresses. `ring` is memory from mmap(); `team`, where
  /// there is one, maps and unmaps parts of a range side by side.
  static std::unique_ptr<CacheWindow> open(std::shared_ptr<const File> file, std::byte* ring, Team team = {});

  /// How quickly it maps the file and gives it back, measured on its first 64 MiB; none where it would not.
  static std::optional<double> bytes_per_us(const std::shared_ptr<const File>& file);

  ~CacheWindow();
  CacheWindow(const CacheWindow&) = delete;
  CacheWindow& operator=(const CacheWindow&) = delete;

  /// The range of the file gets the place [place, place + room) of the ring, whose memory is given back to the system;
  /// what was mapped for that place is mapped no more. Returns where its bytes are, until the place is given to others.
  /// Null where the range is not aligned, or too much is mapped already; where it is not cached (as far as samples of
  /// it show), the file has another time, the system does not let it be locked, or somebody has wanted to write; what
  /// was refused is not tried again.
  const std::byte* map(std::uint64_t place, std::uint64_t room, std::uint64_t offset, std::uint64_t bytes);

  /// The place is given to others: what was mapped for any part of it is mapped no more.
  void take(std::uint64_t place, std::uint64_t room);

  /// True for addresses that it gives ranges.
  bool contains(const void* address) const;

 private:
  struct Range {
    std::uint64_t bytes;
    std::uint64_t place;
    bool is_copy = false; ///< exchanged
  };
  struct Place {
    std::uint64_t end;
    std::uint64_t offset;
  };
  struct Pages {
    std::uint64_t begin; // as offsets in the file
    std::uint64_t end;
  };

  CacheWindow(std::shared_ptr<const File> file, std::byte* ring, Team team, std::byte* reserved);
  void take_locked(std::uint64_t place, std::uint64_t room);
  bool may_map(std::uint64_t offset, std::uint64_t bytes) const;
  Pages own_pages(std::uint64_t offset, std::uint64_t bytes) const;
  bool lock_pages(const Pages& pages) const;
  void unmap_pages(const Pages& pages) const;
  bool advise(const Pages& pages, int advice) const;
  void exchange_all();
  bool exchange(std::uint64_t begin, std::uint64_t end) const;

  const std::shared_ptr<const File> file_;
  std::byte* const ring_;
  const Team team_;
  const std::uint64_t most_;              // bytes that may be mapped
  std::byte* const reserved_;             // addresses without memory, and of them
  std::byte* const addresses_;            // as many as the file has bytes
  std::mutex mutex_;                      // what follows, and what is mapped
  std::map<std::uint64_t, Range> ranges_; // mapped, by offset
  std::map<std::uint64_t, Place> places_; // that they have
  std::uint64_t mapped_ = 0;              // bytes of ranges_
  bool closed_ = false;                   // nothing is mapped any more
  std::unique_ptr<FileLease> lease_;
};

} // namespace offload
