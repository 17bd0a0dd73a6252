#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include <offload/core/link.h>
#include <offload/feed/stores.h>

namespace offload {

/// Staging buffers in turn: each is filled, sent, and free again once the link has read it. One thread calls.
class Staging {
 public:
  Staging(Link& link, StagingBuffers buffers) : link_(link), buffers_(buffers), sent_(buffers.count) {}

  std::size_t count() const { return sent_.size(); }
  std::uint64_t buffer_bytes() const { return buffers_.buffer_bytes; }

  /// The buffer whose turn it is. Throws when none may be filled any more.
  std::byte* next() const;
  void take_next() { next_ = (next_ + 1) % count(); }

  /// True when the link does not read it any more, as far as can be seen without a wait.
  bool next_is_read();
  void await_next_read();

  /// What the link still reads must not be freed.
  void await_all_read();

  /// The link reads the buffer that begins at `data` from now on, until a fence. Where none can be had, nobody knows
  /// until when: then now is waited for, and where that can not be, no buffer is filled ever again. Throws either way.
  void note_sent(const std::byte* data);

 private:
  Link& link_;
  const StagingBuffers buffers_;
  std::vector<FencePtr> sent_; // by buffer: after this the link has read it
  std::size_t next_ = 0;
  std::string broken_; // why no buffer may be filled any more; empty while they may
};

} // namespace offload
