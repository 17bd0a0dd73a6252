#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <offload/core/link.h>
#include <offload/core/mutex.h>
#include <offload/core/weight_table.h>
#include <offload/ring/scheduler.h>
#include <offload/ring/store.h>

namespace offload {

/// What a streamer works with. The store outlives the streamer, and the rest lives until it is stopped.
struct StreamerConfig {
  Link* link = nullptr;
  Store* store = nullptr;
  std::byte* ring = nullptr; ///< on the device, aligned to 512 bytes
  std::uint64_t ring_bytes = 0;
  std::uint64_t batch_bytes = 0;
  int lanes = 1;
  WeightTablePtr weights;
};

/// What a streamer has counted since it was made, or in one call.
struct StreamerCounts {
  std::uint64_t misses = 0;     ///< weights that a node wanted and that no prefetch had under way
  std::uint64_t bytes_used = 0; ///< see SlotTable
  PassCounts passes;
  double door_us = 0;  ///< that calls have waited before their first weight: for the passes before theirs
  double calls_us = 0; ///< that they have waited for others after that

  void add(const StreamerCounts& more);
};

/// What a call was.
struct ExecutedCall {
  Sequence steps;
  StreamerCounts counts;
};

/// Brings weights to the device ahead of the nodes that read them, and hands out leases on them.
///
/// A call on a lane is begin(), any number of acquire() and release(), end(). Calls on one lane come one after another;
/// lanes may run at the same time. No function but stop() waits for the device. acquire() waits until copies of its own
/// weights are enqueued, and for other lanes to give back leases. A thread that hands batches to the store may wait for
/// the disk.
class Streamer {
 public:
  explicit Streamer(StreamerConfig config);

  /// Stops.
  ~Streamer();

  /// Waits until no copy is under way any more. No call is under way. Leases may end afterwards, and nothing else may
  /// happen; their memory is read until they do.
  void stop() noexcept;

  /// Announces a call that is expected to execute `sequence`, and starts to prefetch it. Calls of a module share
  /// passes: the first of its weights says which it is.
  void begin(int lane, std::shared_ptr<const Sequence> sequence, WeightId module = 0,
             Priority priority = Priority::normal);

  /// Ends the call, and returns what it was.
  ExecutedCall end(int lane);

  /// Prefetches for the next call on a lane that rests.
  void expect(int lane, std::shared_ptr<const Sequence> sequence, WeightId module = 0);

  /// Leases the weights of one node, all or none. Afterwards their bytes are there for what is enqueued on the lane.
  /// Throws Error when leases hold the ring, naming their weights, and when a copy fails, naming the weight.
  void acquire(int lane, const Step& step);

  /// Ends the leases of one acquire(); what reads the weights has been enqueued on the lane. Never throws: a device
  /// that refuses, or a host without memory, makes every later call fail.
  void release(int lane, const Step& step) noexcept;

  /// Where the bytes of a leased weight are: on the device, or, where the host is the device, in the page cache.
  std::byte* address(WeightId weight) const;
  bool is_in_ring(WeightId weight) const { return !config_.store->outside_ring(weight); }

  StreamerCounts counts() const;

  /// Has the time taken of all copies that are handed out until take_marked(), which gives them. None if that has not
  /// been asked for, and where there were too many.
  void mark_copies();
  std::optional<std::vector<MarkedBatch>> take_marked();

  /// True when host memory ran out while places changed hands: nobody knows what is where any more. Every call throws
  /// Error from then on, and another streamer has to begin anew.
  bool lost() const;

  /// See Scheduler.
  std::vector<std::uint64_t> layout() const;

 private:
  /// What every later call is told.
  struct Broken {
    bool lost = false;  // host memory ran out
    std::string device; // why it refused
  };

  /// What the store has not been given yet.
  struct Outbox {
    std::vector<Batch> batches;                     // in their order
    bool is_emptied = false;                        // a thread gives them to it, for all
    std::optional<std::vector<MarkedBatch>> marked; // those whose times are wanted, given or not; none: they are not
  };

  template <typename Change>
  bool change(Change change) OFFLOAD_REQUIRES(mutex_);
  void mark_from(std::size_t first) noexcept OFFLOAD_REQUIRES(mutex_);
  void issue() OFFLOAD_REQUIRES(mutex_);
  bool await_copies(int lane, const Step& step) OFFLOAD_REQUIRES(mutex_);
  [[noreturn]] void refuse(const Step& step) const OFFLOAD_REQUIRES(mutex_);
  void wait_arrived(int lane, const Step& step, const std::vector<ArrivalPtr>& arrivals);
  void check() const OFFLOAD_REQUIRES(mutex_);

  const StreamerConfig config_;
  std::vector<std::uint64_t> arrived_; // by lane, for its thread: order of the latest fence that its stream waits for
  mutable Mutex mutex_;
  Condition released_;
  Scheduler scheduler_ OFFLOAD_GUARDED_BY(mutex_);
  std::vector<ExecutedCall> calls_ OFFLOAD_GUARDED_BY(mutex_); // by lane
  Outbox outbox_ OFFLOAD_GUARDED_BY(mutex_);
  std::vector<ArrivalPtr> awaited_ OFFLOAD_GUARDED_BY(mutex_); // each by one lane, for all who wait for it
  bool stopped_ OFFLOAD_GUARDED_BY(mutex_) = false;
  Broken broken_ OFFLOAD_GUARDED_BY(mutex_);
  StreamerCounts ended_ OFFLOAD_GUARDED_BY(mutex_); // the sum of calls that have
};

} // namespace offload
