#include <offload/runtime/activations.h>

#include <algorithm>
#include <iterator>
#include <utility>

namespace offload {

void Activations::record(std::size_t shape, std::uint64_t bytes) {
  Shape& seen = shapes_[shape];
  seen.known = seen.bytes() == 0 || bytes <= seen.bytes();
  seen.recent = std::max(seen.recent, bytes);
  if (std::exchange(seen.at_least, 0) > 0) {
    add_up();
  }
  count(seen);
}

void Activations::record_at_least(std::size_t shape, std::uint64_t bytes) {
  Shape& seen = shapes_[shape];
  seen.known = false;
  seen.at_least = std::max(seen.at_least, bytes);
  count(seen);
}

void Activations::pin(std::size_t shape) { shapes_[shape].pinned = true; }

void Activations::remove(std::size_t shape) {
  shapes_.erase(shape);
  add_up();
}

bool Activations::knows(std::size_t shape) const {
  const auto seen = shapes_.find(shape);
  return seen != shapes_.end() && seen->second.known;
}

std::uint64_t Activations::expected(std::size_t shape) const {
  const auto seen = shapes_.find(shape);
  return seen != shapes_.end() && seen->second.known ? seen->second.bytes() : largest_;
}

void Activations::count(const Shape& seen) {
  differ_ = differ_ || (largest_ > 0 && seen.bytes() != largest_);
  largest_ = std::max(largest_, seen.bytes());
  if (++calls_ % kPeriod == 0) {
    begin_period();
  }
}

void Activations::begin_period() {
  for (auto seen = shapes_.begin(); seen != shapes_.end();) {
    Shape& shape = seen->second;
    if (!shape.pinned) {
      shape.before = std::max(std::exchange(shape.recent, 0), std::exchange(shape.at_least, 0));
    }
    seen = shape.bytes() == 0 ? shapes_.erase(seen) : std::next(seen);
  }
  add_up();
}

void Activations::add_up() {
  largest_ = 0;
  differ_ = false;
  for (const auto& [shape, seen] : shapes_) {
    differ_ = differ_ || (largest_ > 0 && seen.bytes() != largest_);
    largest_ = std::max(largest_, seen.bytes());
  }
}

} // namespace offload
