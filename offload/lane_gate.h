#pragma once

#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <vector>

namespace offload {

/// Lets as many calls in as there are lanes, in the order in which they came, and now and then one visitor alone.
class LaneGate {
 public:
  explicit LaneGate(int lanes) : lanes_(lanes) {
    for (int lane = lanes; lane > 0; --lane) {
      free_.push_back(lane - 1);
    }
  }

  /// Waits for a lane. The lane that was left last is given first: what it has prefetched is used.
  int enter() {
    std::unique_lock lock(mutex_);
    await_turn(lock, [&] { return !free_.empty(); });
    const int lane = free_.back();
    free_.pop_back();
    next_turn();
    return lane;
  }

  void leave(int lane) {
    const std::lock_guard lock(mutex_);
    free_.push_back(lane);
    changed_.notify_all();
  }

  /// Waits until all lanes are free, and keeps them so.
  void enter_alone() {
    std::unique_lock lock(mutex_);
    await_turn(lock, [&] { return free_.size() == static_cast<std::size_t>(lanes_); });
  }

  void leave_alone() {
    const std::lock_guard lock(mutex_);
    next_turn();
  }

 private:
  template <typename Ready>
  void await_turn(std::unique_lock<std::mutex>& lock, Ready ready) {
    const std::uint64_t ticket = tickets_++;
    changed_.wait(lock, [&] { return serving_ == ticket && ready(); });
  }

  void next_turn() {
    ++serving_;
    changed_.notify_all();
  }

  const int lanes_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<int> free_;
  std::uint64_t tickets_ = 0;
  std::uint64_t serving_ = 0;
};

/// A lane for as long as this lives.
class LaneVisit {
 public:
  explicit LaneVisit(LaneGate& gate) : gate_(gate), lane_(gate.enter()) {}
  ~LaneVisit() { gate_.leave(lane_); }
  LaneVisit(const LaneVisit&) = delete;
  LaneVisit& operator=(const LaneVisit&) = delete;
  int lane() const { return lane_; }

 private:
  LaneGate& gate_;
  const int lane_;
};

/// All lanes, for as long as this lives.
class LoneVisit {
 public:
  explicit LoneVisit(LaneGate& gate) : gate_(gate) { gate_.enter_alone(); }
  ~LoneVisit() { gate_.leave_alone(); }
  LoneVisit(const LoneVisit&) = delete;
  LoneVisit& operator=(const LoneVisit&) = delete;

 private:
  LaneGate& gate_;
};

} // namespace offload
