#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <vector>

#include <offload/core/link.h>

namespace offload {

/// Device memory that streamed bytes pass through, as offsets: no memory is owned or touched here.
///
/// Places are given out in a circle, each after the last, so that what is fetched together lies together; a place that
/// is still held is stepped over. For every freed place the ring remembers the fences of its last readers until the
/// bytes are given out again. Not synchronised: the owner's mutex guards it.
class Ring {
 public:
  explicit Ring(std::uint64_t bytes) : bytes_(bytes), bytes_free_(bytes) {
    if (bytes > 0) {
      gaps_[0] = bytes;
    }
  }

  /// The offset of `bytes` contiguous bytes; none when no gap is that large. `bytes` > 0.
  std::optional<std::uint64_t> allocate(std::uint64_t bytes);

  /// Gives back what `allocate(bytes)` gave. `readers` are the points after which it may be overwritten; empty when
  /// no lane has read there since: what was remembered before still holds, and copies that nobody read come before
  /// those that will be enqueued.
  void free(std::uint64_t offset, std::uint64_t bytes, const std::vector<FencePtr>& readers);

  /// Appends the fences that a writer of this range must wait for. They stay until `drop_readers`.
  void collect_readers(std::uint64_t offset, std::uint64_t bytes, std::vector<FencePtr>& out) const;

  /// The range has been given to a writer that waits for its readers.
  void drop_readers(std::uint64_t offset, std::uint64_t bytes);

  std::uint64_t bytes() const { return bytes_; }
  std::uint64_t bytes_free() const { return bytes_free_; }

  /// Where the next search begins; saved and restored around an attempt that may be undone.
  std::uint64_t cursor() const { return cursor_; }
  void set_cursor(std::uint64_t cursor) { cursor_ = cursor; }

 private:
  struct Readers {
    std::uint64_t end;
    std::vector<FencePtr> fences;
  };

  void split_readers_at(std::uint64_t offset);

  std::uint64_t bytes_;
  std::uint64_t bytes_free_;
  std::uint64_t cursor_ = 0;
  std::map<std::uint64_t, std::uint64_t> gaps_; // offset -> bytes, never adjacent
  std::map<std::uint64_t, Readers> readers_;    // offset -> readers of [offset, end), never overlapping
};

} // namespace offload
