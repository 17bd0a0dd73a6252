#include <offload/feed/staging.h>

#include <exception>

#include <offload/error.h>

namespace offload {

std::byte* Staging::next() const {
  if (!broken_.empty()) {
    throw Error(broken_);
  }
  return buffers_.data + next_ * buffers_.buffer_bytes;
}

bool Staging::next_is_read() {
  FencePtr& sent = sent_[next_];
  if (sent && link_.reached(*sent)) {
    sent.reset();
  }
  return !sent;
}

void Staging::await_next_read() {
  FencePtr& sent = sent_[next_];
  if (!sent) {
    return;
  }
  try {
    link_.synchronize(*sent);
  } catch (const std::exception&) { // the next command tells it; a device that is gone reads nothing
  }
  sent.reset();
}

void Staging::await_all_read() {
  for (std::size_t i = 0; i < count(); ++i, take_next()) {
    await_next_read();
  }
}

void Staging::note_sent(const std::byte* data) {
  try {
    sent_[(data - buffers_.data) / buffers_.buffer_bytes] = link_.record_arrived();
  } catch (const std::exception& refused) {
    try {
      link_.synchronize(*link_.record_arrived());
    } catch (const std::exception&) {
      broken_ = refused.what();
    }
    throw;
  }
}

} // namespace offload
