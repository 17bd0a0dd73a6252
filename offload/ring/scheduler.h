#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include <offload/core/batch.h>
#include <offload/ring/prefetcher.h>
#include <offload/ring/slot_table.h>

namespace offload {

/// Decides which weights are in the ring and when their copies are issued: a SlotTable knows what is there, a
/// Prefetcher what comes next. It moves nothing: it knows bytes and numbers, so that the planner can run the very
/// decisions that a device will see.
///
/// Batches must be issued in the order in which they are handed out. Not synchronised: the owner's mutex guards it.
class Scheduler {
 public:
  /// `bytes` of each weight as it lies in the ring, aligned by the caller; of weights that never stream, any number.
  /// Fetches are gathered into batches of about `batch_bytes`, or a quarter of the ring if that is less.
  Scheduler(std::vector<std::uint64_t> bytes, std::uint64_t ring_bytes, std::uint64_t batch_bytes, int lanes)
      : slots_(std::move(bytes), ring_bytes, batch_bytes, lanes), prefetcher_(slots_, lanes), lanes_(lanes) {}
  Scheduler(const Scheduler&) = delete;
  Scheduler& operator=(const Scheduler&) = delete;

  /// A call on `lane`, which is expected to execute `sequence`, begins or ends; or will be the next one there. What is
  /// brought for it ahead of its use is appended to `out`. See Prefetcher.
  void begin(int lane, std::shared_ptr<const Sequence> sequence, std::vector<Batch>& out, WeightId module = 0,
             Priority priority = Priority::normal);
  void end(int lane, std::vector<Batch>& out);
  void expect(int lane, std::shared_ptr<const Sequence> sequence, std::vector<Batch>& out, WeightId module = 0);

  /// Drops all claims of all lanes, after a copy that failed has been reported: what a lease still holds of it is
  /// copied anew when it is acquired again.
  void abandon();

  enum class Outcome {
    leased,
    waits_for_calls,  ///< their leases hold too much of the ring, or they come first: until one of them goes on
    waits_for_copies, ///< until awaited() has arrived
    refused,          ///< there is no room, and nobody who holds a lease will go on
  };

  /// Leases every weight of `step` to `lane`, or none: then it is to be called again when `out` has grown in any call,
  /// or another lane has released or ended. What is not on its way yet is appended to `out`, and counted as a miss.
  /// `at_once` lets nobody come first: for a lane that has waited while nobody went on.
  Outcome acquire(int lane, const Step& step, std::vector<Batch>& out, bool at_once = false);

  /// After `waits_for_copies`: what has to arrive before acquire() can bring what is missing of `step`. arrive() says
  /// that it has; null is nothing.
  ArrivalPtr awaited(int lane, const Step& step) const;
  void arrive(int lane, const ArrivalPtr& last, std::vector<Batch>& out);

  /// Ends the leases of one acquire(). After `used`, the bytes may be overwritten.
  void release(int lane, const Step& step, const FencePtr& used, std::vector<Batch>& out);

  /// True while copies into what `lane` releases may be handed out much later.
  bool shares(int lane) const { return prefetcher_.shares(lane); }

  const PassCounts& passes() const { return prefetcher_.counts(); }

  /// What is in the ring.
  const SlotTable& slots() const { return slots_; }

  std::uint64_t misses() const { return misses_; }

  /// All that later decisions and counts depend on: two passes that end with the same layout go on alike.
  std::vector<std::uint64_t> layout() const;

 private:
  struct Lane {
    std::size_t leases = 0;
    bool in_call = false;
    bool waits = false; // for other calls, and has looked since anything changed
  };

  void prefetch(int lane, std::vector<Batch>& out);
  void note_change();
  bool nobody_goes_on() const;
  bool nobody_will_release() const;
  Outcome lease(int lane, const Step& step, std::vector<Batch>& out, bool at_once);
  Outcome make_room(int lane, const Step& step, Step missing, SlotTable::Transaction& transaction, bool at_once);

  SlotTable slots_;
  Prefetcher prefetcher_;
  std::vector<Lane> lanes_;
  std::uint64_t misses_ = 0;
};

} // namespace offload
