#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <utility>

#include <offload/core/mutex.h>

namespace offload {

/// Page-locked host memory in the place of device memory, for a call that finds no room there. Page-locking takes long:
/// what a call gives back is lent to it again until the call ends. All of it is freed with this object. Any thread may
/// call.
class HostLoans {
 public:
  /// Where such memory comes from: the device can reach it.
  struct Source {
    std::function<void*(std::uint64_t bytes)> allocate; ///< null when there is none
    std::function<void(void*)> free;
  };

  explicit HostLoans(Source source) : source_(std::move(source)) {}
  ~HostLoans();

  /// `bytes` for a part of an arena at `offset`; null when there are none.
  void* lend(std::uint64_t bytes, std::uint64_t offset);

  /// What lend() gave; returns the offset that it was given for.
  std::uint64_t take_back(void* data);

  /// Whether `data` is lent. Takes no lock while nothing is.
  bool contains(const void* data) const;

  /// A call has ended, also on the device: frees what was given back.
  void free_returned();

 private:
  struct Loan {
    std::uint64_t offset;
    std::uint64_t bytes;
  };

  const Source source_;
  mutable Mutex mutex_;
  std::map<const std::byte*, Loan> lent_ OFFLOAD_GUARDED_BY(mutex_);        // by address
  std::multimap<std::uint64_t, void*> returned_ OFFLOAD_GUARDED_BY(mutex_); // by size
  std::atomic<bool> any_lent_ = false;
};

} // namespace offload
