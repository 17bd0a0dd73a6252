#pragma once

#include <chrono>
#include <memory>

namespace offload {

/// A moment in a queue of work, such as of a lane or of a link's copies: when all that was enqueued there before was
/// done. Any thread may ask.
class Mark {
 public:
  virtual ~Mark() = default;
  Mark() = default;
  Mark(const Mark&) = delete;
  Mark& operator=(const Mark&) = delete;

  /// Whether it has come. Does not wait.
  virtual bool is_reached() const = 0;

  /// Microseconds from `earlier`, of the same device, to this. Both are reached.
  virtual double us_after(const Mark& earlier) const = 0;
};
using MarkPtr = std::shared_ptr<const Mark>;

/// Of a host, which has done what it has enqueued.
class HostMark final : public Mark {
 public:
  bool is_reached() const override { return true; }
  double us_after(const Mark& earlier) const override {
    return std::chrono::duration<double, std::micro>(time_ - static_cast<const HostMark&>(earlier).time_).count();
  }

 private:
  const std::chrono::steady_clock::time_point time_ = std::chrono::steady_clock::now();
};

} // namespace offload
