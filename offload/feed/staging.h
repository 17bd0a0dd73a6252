#pragma once

#include <cstddef>
#include <cstdint>
#include <exception>
#include <string>
#include <utility>
#include <vector>

#include <offload/core/link.h>
#include <offload/error.h>
#include <offload/feed/stores.h>

namespace offload {

/// Staging buffers in turn: each is filled, sent, and free again once the link has read it. One thread calls.
class Staging {
 public:
  Staging(Link& link, StagingBuffers buffers) : link_(link), buffers_(buffers), sent_(buffers.count) {}

  std::size_t count() const { return sent_.size(); }
  std::uint64_t buffer_bytes() const { return buffers_.buffer_bytes; }

  /// The buffer whose turn it is. Throws when none may be filled any more.
  std::byte* next() const {
    if (!broken_.empty()) {
      throw Error(broken_);
    }
    return buffers_.data + next_ * buffer_bytes();
  }
  void take_next() { next_ = (next_ + 1) % count(); }

  /// True when the link does not read it any more, as far as can be seen without a wait.
  bool next_is_read() {
    FencePtr& sent = sent_[next_];
    if (sent && link_.reached(*sent)) {
      sent.reset();
    }
    return !sent;
  }
  void await_next_read() {
    if (const FencePtr sent = std::exchange(sent_[next_], nullptr)) {
      try {
        link_.synchronize(*sent);
      } catch (const std::exception&) { // the next command tells it; a device that is gone reads nothing
      }
    }
  }

  /// What the link still reads must not be freed.
  void await_all_read() {
    for (std::size_t i = 0; i < count(); ++i, take_next()) {
      await_next_read();
    }
  }

  /// The link reads the buffer that begins at `data` from now on, until a fence. Where none can be had, nobody knows
  /// until when: then now is waited for, and where that can not be, no buffer is filled ever again. Throws either way.
  void note_sent(const std::byte* data) {
    try {
      sent_[(data - buffers_.data) / buffer_bytes()] = link_.record_arrived();
    } catch (const std::exception& refused) {
      try {
        link_.synchronize(*link_.record_arrived());
      } catch (const std::exception&) {
        broken_ = refused.what();
      }
      throw;
    }
  }

 private:
  Link& link_;
  const StagingBuffers buffers_;
  std::vector<FencePtr> sent_; // by buffer: after this the link has read it
  std::size_t next_ = 0;
  std::string broken_; // why no buffer may be filled any more; empty while they may
};

} // namespace offload
