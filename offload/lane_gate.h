#pragma once

#include <algorithm>
#include <condition_variable>
#include <cstdint>
#include <iterator>
#include <mutex>
#include <vector>

namespace offload {

/// Lets as many calls in as there are lanes, in the order in which they came, and now and then one visitor alone.
class LaneGate {
 public:
  explicit LaneGate(int lanes) : lanes_(lanes), visitors_(static_cast<std::size_t>(lanes)) {
    for (int lane = lanes; lane > 0; --lane) {
      free_.push_back(lane - 1);
    }
  }

  /// Waits for a lane. The one that was left last is given first, for what it has prefetched is used; before it those
  /// that had the same visitor.
  int enter(const void* visitor = nullptr) {
    std::unique_lock lock(mutex_);
    await_turn(lock, [&] { return !free_.empty(); });
    auto chosen = std::find_if(free_.rbegin(), free_.rend(), [&](int lane) { return visitors_[lane] == visitor; });
    chosen = chosen == free_.rend() ? free_.rbegin() : chosen;
    const int lane = *chosen;
    free_.erase(std::prev(chosen.base()));
    visitors_[lane] = visitor;
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
  std::vector<const void*> visitors_; // by lane, the last
  std::uint64_t tickets_ = 0;
  std::uint64_t serving_ = 0;
};

/// A lane for as long as this lives.
class LaneVisit {
 public:
  explicit LaneVisit(LaneGate& gate, const void* visitor = nullptr) : gate_(gate), lane_(gate.enter(visitor)) {}
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
