#include <offload/activations.h>

#include <algorithm>

namespace offload {

void Activations::note(std::size_t shape, std::uint64_t bytes) {
  Shape& seen = shapes_[shape];
  seen.known = seen.last_call == 0 || bytes <= seen.bytes;
  seen.bytes = std::max(seen.bytes, bytes);
  seen.last_call = ++calls_;
  differ_ = differ_ || (largest_ > 0 && seen.bytes != largest_);
  largest_ = std::max(largest_, seen.bytes);
  if (calls_ % (kCallsRemembered / 4) == 0) {
    forget();
  }
}

void Activations::note_at_least(std::size_t shape, std::uint64_t bytes) {
  note(shape, bytes);
  shapes_[shape].known = false;
}

void Activations::keep(std::size_t shape) { shapes_[shape].kept = true; }

bool Activations::knows(std::size_t shape) const {
  const auto seen = shapes_.find(shape);
  return seen != shapes_.end() && seen->second.known;
}

std::uint64_t Activations::expected(std::size_t shape) const {
  const auto seen = shapes_.find(shape);
  return seen != shapes_.end() && seen->second.known ? seen->second.bytes : largest_;
}

void Activations::forget() {
  largest_ = 0;
  differ_ = false;
  for (auto seen = shapes_.begin(); seen != shapes_.end();) {
    const bool gone = !seen->second.kept && seen->second.last_call + kCallsRemembered <= calls_;
    if (!gone) {
      differ_ = differ_ || (largest_ > 0 && seen->second.bytes != largest_);
      largest_ = std::max(largest_, seen->second.bytes);
    }
    seen = gone ? shapes_.erase(seen) : std::next(seen);
  }
}

} // namespace offload
