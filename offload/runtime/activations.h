#pragma once

#include <algorithm>
#include <cstdint>
#include <unordered_map>
#include <utility>

namespace offload {

/// What calls take of the memory of a lane, by their shape: as it was seen so far. What has not been seen for a while
/// is dropped, except for calls that were named in advance. Not synchronised.
class Activations {
 public:
  /// A call of `shape` took `bytes`.
  void record(std::size_t shape, std::uint64_t bytes) {
    Shape& seen = shapes_[shape];
    seen.known = seen.bytes() == 0 || bytes <= seen.bytes();
    seen.recent = std::max(seen.recent, bytes);
    if (std::exchange(seen.at_least, 0) > 0) {
      add_up();
    }
    count(seen);
  }

  /// A call of `shape` takes `bytes` at least: it was stopped there. Once one has been seen to its end, what that took
  /// counts instead, even if it is less: memory in pieces also stops calls that would fit into it in one.
  void record_at_least(std::size_t shape, std::uint64_t bytes) {
    Shape& seen = shapes_[shape];
    seen.known = false;
    seen.at_least = std::max(seen.at_least, bytes);
    count(seen);
  }

  /// Calls of `shape` are planned for, whether they come or not.
  void pin(std::size_t shape) { shapes_[shape].pinned = true; }

  /// True when a call of `shape` has been seen to its end, and took no more than the ones before it.
  bool knows(std::size_t shape) const {
    const auto seen = shapes_.find(shape);
    return seen != shapes_.end() && seen->second.known;
  }

  /// What a call of `shape` is expected to take: of a shape that is not known, as much as the largest.
  std::uint64_t expected(std::size_t shape) const { return knows(shape) ? shapes_.at(shape).bytes() : largest_; }

  /// What the largest call takes.
  std::uint64_t largest() const { return largest_; }

  /// True when calls do not all take the same.
  bool differ() const { return differ_; }

  bool empty() const { return largest_ == 0; }

  /// A call of `shape` was refused: it is as if it had not come.
  void remove(std::size_t shape) {
    shapes_.erase(shape);
    add_up();
  }

  /// What is not seen again is dropped after so many calls to twice as many.
  static constexpr std::uint64_t kPeriod = 1024;

 private:
  /// The most that calls took in this period of calls, and in the last one.
  struct Shape {
    std::uint64_t recent = 0;
    std::uint64_t before = 0;
    std::uint64_t at_least = 0;
    bool pinned = false;
    bool known = false;

    std::uint64_t bytes() const { return std::max({recent, before, at_least}); }
  };

  void count(const Shape& seen) {
    add(seen);
    if (++calls_ % kPeriod == 0) {
      begin_period();
    }
  }

  void begin_period() {
    for (auto& [shape, seen] : shapes_) {
      if (!seen.pinned) {
        seen.before = std::max(std::exchange(seen.recent, 0), std::exchange(seen.at_least, 0));
      }
    }
    std::erase_if(shapes_, [](const auto& entry) { return entry.second.bytes() == 0; });
    add_up();
  }

  void add_up() {
    largest_ = 0;
    differ_ = false;
    for (const auto& [shape, seen] : shapes_) {
      add(seen);
    }
  }

  void add(const Shape& seen) {
    differ_ = differ_ || (largest_ > 0 && seen.bytes() != largest_);
    largest_ = std::max(largest_, seen.bytes());
  }

  std::unordered_map<std::size_t, Shape> shapes_;
  std::uint64_t calls_ = 0;
  std::uint64_t largest_ = 0;
  bool differ_ = false;
};

} // namespace offload
