#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>

namespace offload {

/// Memory that was asked for in vain.
struct Refusal {
  std::uint64_t bytes = 0;
  bool by_driver = false; ///< the limit had room, the device had not
};

/// Device memory that one pool gets from the driver, up to a limit. Shared with the pool, which PyTorch's allocator may
/// keep longer than its owner. Any thread may call.
class Segments {
 public:
  ~Segments() { free_all(); }

  /// Null when `bytes` more go over the limit, or when the driver has not so much; the caller's device is current.
  void* allocate(std::size_t bytes);

  /// Does nothing for what free_all() has freed.
  void free(void* data);
  void free_all();
  bool contains(const void* address) const;

  void set_limit(std::uint64_t bytes);

  /// Takes what `other` has, to give it out again in the same pieces.
  void take_over(Segments& other);

  /// What goes over the limit comes from page-locked host memory, which the device can reach.
  void allow_overflow();
  std::uint64_t reserved() const; ///< bytes held now on the device, given out or not
  std::uint64_t small() const;    ///< of them and of what overflowed, in pieces of 2 MiB

  /// What was asked for last and refused; nothing when that was granted, or this was asked already.
  Refusal take_refused();

 private:
  void free_taken_over();

  struct Segment {
    std::uint64_t bytes = 0;
    bool on_host = false;
  };

  mutable std::mutex mutex_;
  std::map<const std::byte*, Segment> segments_;
  std::multimap<std::uint64_t, const std::byte*> taken_over_; // on the device, by size; not given out yet
  std::uint64_t limit_ = 0;
  std::uint64_t reserved_ = 0;
  Refusal refused_;
  bool overflow_ = false;
};

} // namespace offload
