#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace offload {

/// Memory behind one range of addresses that begins at data(): it grows and shrinks at its end, and what is in it stays
/// where it is. One thread at a time, except for data().
class Pages {
 public:
  virtual ~Pages() = default;
  virtual std::byte* data() const = 0;

  /// How many addresses there are: it never grows beyond.
  virtual std::uint64_t addresses() const = 0;

  /// Bytes that are there now, from data() on; a multiple of the unit of the device.
  virtual std::uint64_t bytes() const = 0;

  /// Grows to at least `bytes`. False, with what was there before, when the device has not so much.
  virtual bool grow(std::uint64_t bytes) = 0;

  /// Gives back what lies behind the first `bytes`, as far as it was taken in pieces of its own. Nobody on the device
  /// uses it any more.
  virtual void shrink(std::uint64_t bytes) = 0;
};

/// On a CUDA device, with as many addresses as it has memory. Throws Error when its driver has no virtual memory.
std::unique_ptr<Pages> make_device_pages(int device);

} // namespace offload
