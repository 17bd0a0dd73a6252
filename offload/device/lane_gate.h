#pragma once

#include <cstdint>
#include <list>
#include <vector>

#include <offload/core/mutex.h>
#include <offload/priority.h>

namespace offload {

/// Admits calls: as many as there are lanes, in the order in which they came, each as soon as the memory that it is
/// expected to take is free. Those of higher priority go before others, but before none of them more than
/// kMostOvertaking times. Now and then somebody takes the gate exclusively, to replan: this waits for the calls in
/// flight, and goes before those that wait. Where the gate is of several modules, a *group* is the calls of one of
/// them: who wants that alone stops no others.
///
/// It also keeps the account of that memory: what calls in flight have claimed, and what calls have put into their
/// modules, together at most room(). Any thread may call.
class LaneGate {
 public:
  using Group = const void*;
  static constexpr Group kAll = nullptr;
  static constexpr int kMostOvertaking = 16;

  explicit LaneGate(int lanes);

  /// Waits for a lane, and claims `bytes` for the call. A call that wants more than there is waits until it is the only
  /// one, and claims all. Of the usual lanes that are free, or else of the others, it gets one that the same `caller`
  /// had last; else the one that was released last, since what that has prefetched is then used.
  int acquire(const void* caller = nullptr, std::uint64_t bytes = 0, Group group = kAll,
              Priority priority = Priority::normal);

  int lanes() const;

  /// Calls in flight, and those that wait for their turn.
  int callers() const;

  /// How many calls have got a lane, or all of them, so far.
  std::uint64_t admitted() const;

  /// Ends the call and its claim.
  void release(int lane);

  /// Waits until no call of `group` is in flight, and admits none until release_exclusive(). If that is all calls, lane
  /// 0 is the caller's meanwhile. After that, the call that has waited longest is not overtaken again: so there is a
  /// call between any two exclusive callers, and these wait for no more than that one and the calls in flight.
  void acquire_exclusive(Group group = kAll);
  void release_exclusive(Group group = kAll);

  /// What claims and state may be together. Unlimited until it is set; by who has all calls exclusively, or raises it.
  void set_room(std::uint64_t bytes);
  std::uint64_t room() const;

  /// The same beside calls. Those that come keep to it at once; false while those in flight claim more.
  bool lower_room(std::uint64_t bytes);

  /// The usual lanes are the first so many; all until it is set.
  void set_usual_lanes(int lanes);

  /// Raises the claim of a call in flight to `bytes`. False, with the claim as it was, when others have claimed what is
  /// missing.
  bool extend(int lane, std::uint64_t bytes);

  /// The same for what calls have put into the module, which stays when they end.
  bool set_state(std::uint64_t bytes);

 private:
  static constexpr int kNone = -1;
  static constexpr int kExclusive = -2;

  struct Waiter {
    Waiter(bool wants_all, Group of, const void* for_caller, std::uint64_t memory, Priority urgency)
        : exclusive(wants_all), group(of), caller(for_caller), bytes(memory), priority(urgency) {}

    bool exclusive;
    Group group;
    const void* caller;
    std::uint64_t bytes;
    Priority priority;
    Condition admitted;
    int lane = kNone;       // kExclusive for all of them
    bool overtaken = false; // by an exclusive caller, and not again
    int overtaking = 0;     // calls that have gone before it since their priority is higher
  };

  std::list<Waiter>::iterator place_of(Priority priority) OFFLOAD_REQUIRES(mutex_);
  int await_turn(std::list<Waiter>::iterator waiter) OFFLOAD_REQUIRES(mutex_);
  void admit() OFFLOAD_REQUIRES(mutex_);
  bool is_open(const Waiter& waiter) const OFFLOAD_REQUIRES(mutex_);
  bool has_room(const Waiter& waiter) const OFFLOAD_REQUIRES(mutex_);
  bool is_free(int lane) const OFFLOAD_REQUIRES(mutex_);
  bool fits_beside(std::uint64_t others, std::uint64_t bytes) const OFFLOAD_REQUIRES(mutex_);
  int take_lane(const void* caller) OFFLOAD_REQUIRES(mutex_);
  std::uint64_t claimed() const OFFLOAD_REQUIRES(mutex_);

  mutable Mutex mutex_;
  std::list<Waiter> waiters_ OFFLOAD_GUARDED_BY(mutex_);
  std::vector<int> free_ OFFLOAD_GUARDED_BY(mutex_);
  std::vector<const void*> last_callers_ OFFLOAD_GUARDED_BY(mutex_); // by lane, the last
  std::vector<Group> groups_ OFFLOAD_GUARDED_BY(mutex_);             // by lane, of the last
  std::vector<std::uint64_t> claims_ OFFLOAD_GUARDED_BY(mutex_);     // by lane; 0 for those that are free
  std::uint64_t state_ OFFLOAD_GUARDED_BY(mutex_) = 0;
  std::uint64_t room_ OFFLOAD_GUARDED_BY(mutex_) = ~std::uint64_t{0};
  int usual_ OFFLOAD_GUARDED_BY(mutex_);                    // lanes below this
  std::vector<Group> exclusive_ OFFLOAD_GUARDED_BY(mutex_); // that somebody has
  std::uint64_t admitted_ OFFLOAD_GUARDED_BY(mutex_) = 0;
};

/// A lane for as long as this lives.
class LaneLock {
 public:
  explicit LaneLock(LaneGate& gate, const void* caller = nullptr, std::uint64_t bytes = 0,
                    LaneGate::Group group = LaneGate::kAll, Priority priority = Priority::normal)
      : gate_(gate), lane_(gate.acquire(caller, bytes, group, priority)) {}
  ~LaneLock() { gate_.release(lane_); }
  LaneLock(const LaneLock&) = delete;
  LaneLock& operator=(const LaneLock&) = delete;
  int lane() const { return lane_; }

 private:
  LaneGate& gate_;
  const int lane_;
};

/// No call of a group is in flight for as long as this lives.
class ExclusiveLaneLock {
 public:
  explicit ExclusiveLaneLock(LaneGate& gate, LaneGate::Group group = LaneGate::kAll) : gate_(gate), group_(group) {
    gate_.acquire_exclusive(group_);
  }
  ~ExclusiveLaneLock() { gate_.release_exclusive(group_); }
  ExclusiveLaneLock(const ExclusiveLaneLock&) = delete;
  ExclusiveLaneLock& operator=(const ExclusiveLaneLock&) = delete;

 private:
  LaneGate& gate_;
  const LaneGate::Group group_;
};

} // namespace offload
