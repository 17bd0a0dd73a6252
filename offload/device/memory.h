#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include <offload/core/words.h>

namespace offload {

/// Device memory is given out in units of this size: what a plan counts must be what the driver takes.
constexpr std::uint64_t kDeviceGranularity = 2ULL << 20;

/// One allocation on a device, aligned to 512 bytes or more. Freeing it waits for nothing: the owner knows that nobody
/// reads it any more.
class DeviceMemory {
 public:
  DeviceMemory() = default;

  /// On `device`, which is the current one; -1 for the host. Throws Error, saying what `purpose` it was for, when there
  /// is not so much.
  DeviceMemory(int device, std::uint64_t bytes, const char* purpose);

  std::byte* data() const { return data_.get(); }
  std::uint64_t bytes() const { return data_.get_deleter().bytes; }
  bool contains(const void* address) const;

  /// Copies bytes from here to the host, where nobody writes them meanwhile, and waits for nothing else.
  void download(std::uint64_t offset, void* dst, std::uint64_t bytes) const;

 private:
  struct Free {
    int device;
    std::uint64_t bytes;
    void operator()(std::byte* data) const noexcept;
  };
  bool on_host() const { return data_.get_deleter().device < 0; }

  friend class Uploads;

  std::unique_ptr<std::byte, Free> data_;
};

class OwnStream;

/// Copies of host bytes to memory on a device that nobody reads yet. They wait for nothing else, and nothing waits for
/// them. All begin in the order in which they are added, on the device that is current.
class Uploads {
 public:
  /// To `memory`, which stays as long as this.
  explicit Uploads(DeviceMemory& memory);
  ~Uploads();
  Uploads(const Uploads&) = delete;
  Uploads& operator=(const Uploads&) = delete;

  /// Begins to copy. Nobody writes `src` until wait() has returned.
  void add(std::uint64_t offset, const void* src, std::uint64_t bytes);

  /// Since the last wait().
  std::uint64_t under_way() const { return under_way_; }

  /// Until all have come.
  void wait();

 private:
  DeviceMemory& memory_;
  const std::unique_ptr<OwnStream> stream_; // null for a host
  std::uint64_t under_way_ = 0;
};

/// Host memory of an exact size, of which the first bytes may be page-locked.
class HostMemory {
 public:
  HostMemory() = default;

  /// Throws Error when the host has not so much.
  explicit HostMemory(std::uint64_t bytes);

  /// Page-locks the first `bytes`, a multiple of the page size or all there is. Others may write there meanwhile.
  /// Throws Error when the driver refuses.
  void pin(std::uint64_t bytes);

  void unpin();

  /// Gives back the memory of those pages that lie in the range as a whole: nobody reads them any more.
  void discard(std::byte* begin, std::uint64_t bytes);

  std::byte* data() const { return data_.get(); }
  std::uint64_t bytes() const { return data_.get_deleter().bytes; }

 private:
  struct Free {
    std::uint64_t bytes;
    bool pinned;
    void operator()(std::byte* data) const noexcept;
  };

  std::unique_ptr<std::byte, Free> data_;
};

} // namespace offload
