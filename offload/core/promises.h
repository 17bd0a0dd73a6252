#pragma once

#include <cstdint>
#include <functional>

namespace offload {

/// A `place` is whose memory is meant: a CUDA device, by its index, or this.
constexpr int kHost = -1;

/// Memory that a module of this process has been promised. Until the module takes it, the system says that it is free;
/// so what is free is given out less what others have been promised. The promise ends with the object. Any thread may
/// call.
class Promise {
 public:
  explicit Promise(int place) : place_(place) { set(0); }
  ~Promise() { set(0); }
  Promise(const Promise&) = delete;
  Promise& operator=(const Promise&) = delete;

  void set(std::uint64_t bytes);
  void raise_to(std::uint64_t bytes);

  /// Sets it to what `decide` returns. `outstanding` is what others have been promised and have not taken. Meanwhile
  /// nobody else decides, takes memory or gives it back: `decide` must not do so, nor wait for anybody who does.
  void set_by(const std::function<std::uint64_t(std::uint64_t outstanding)>& decide);

  /// What modules have been promised of the memory at `place`, and have not taken.
  static std::uint64_t outstanding(int place);

 private:
  const int place_;
  std::uint64_t bytes_ = 0;
};

/// What modules of this process have taken of the memory at `place`, by record_taken(); on the host, in addresses.
std::uint64_t taken_bytes(int place);

/// Memory that modules have taken. On the host these are addresses: a page counts as taken once the system has given
/// it.
void record_taken(int place, const void* data, std::uint64_t bytes);
void record_given_back(int place, const void* data) noexcept;

} // namespace offload
