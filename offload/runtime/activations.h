#pragma once

#include <algorithm>
#include <cstdint>
#include <unordered_map>

namespace offload {

/// What calls take of the memory of a lane, by their shape: as it was seen so far. What has not been seen for a while
/// is dropped, except for calls that were named in advance. Not synchronised.
class Activations {
 public:
  /// A call of `shape` took `bytes`.
  void record(std::size_t shape, std::uint64_t bytes);

  /// A call of `shape` takes `bytes` at least: it was stopped there. Once one of that shape has been seen to its end,
  /// what that took counts instead, even if it is less: memory in pieces also stops calls that would fit into it in
  /// one.
  void record_at_least(std::size_t shape, std::uint64_t bytes);

  /// Calls of `shape` are planned for, whether they come or not.
  void pin(std::size_t shape);

  /// True when a call of `shape` has been seen to its end, and took no more than the ones before it.
  bool knows(std::size_t shape) const;

  /// What a call of `shape` is expected to take: of a shape that is not known, as much as the largest.
  std::uint64_t expected(std::size_t shape) const;

  /// What the largest call takes.
  std::uint64_t largest() const { return largest_; }

  /// True when calls do not all take the same.
  bool differ() const { return differ_; }

  bool empty() const { return largest_ == 0; }

  /// A call of `shape` was refused: it is as if it had not come.
  void remove(std::size_t shape);

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

  void count(const Shape& seen);
  void begin_period();
  void add_up();

  std::unordered_map<std::size_t, Shape> shapes_;
  std::uint64_t calls_ = 0;
  std::uint64_t largest_ = 0;
  bool differ_ = false;
};

} // namespace offload
