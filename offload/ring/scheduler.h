#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include <offload/core/batch.h>
#include <offload/ring/gather.h>
#include <offload/ring/ring.h>

namespace offload {

/// Decides which weights are in the ring and when their copies are issued. It moves nothing: it knows bytes and
/// numbers, so that the planner can run the very decisions that a device will see.
///
/// Each lane has a window on its sequence, from the step it executes next (cursor) to the last one prefetched (head,
/// and some weights of the step after it). A step in the window has a claim on each of its weights; a weight that is
/// claimed or leased keeps its place. Batches must be issued in the order in which they are handed out. Not
/// synchronised: the owner's mutex guards it.
class Scheduler {
 public:
  /// `bytes` of each weight as it lies in the ring, aligned by the caller; of weights that never stream, any number.
  /// Fetches are gathered into batches of about `batch_bytes`, or a quarter of the ring if that is less.
  Scheduler(std::vector<std::uint64_t> bytes, std::uint64_t ring_bytes, std::uint64_t batch_bytes, int lanes);

  /// Expects `lane` to execute `sequence` from its first step, over and over. What it claimed so far keeps its place as
  /// far as the new window goes without a gap.
  void expect(int lane, std::shared_ptr<const Sequence> sequence);

  /// Lanes in a call share the ring evenly; a lane that rests looks ahead only as far as they leave room.
  void set_active(int lane, bool active);

  /// Drops all claims of all lanes, after a copy that failed has been told: what a lease still holds of it is copied
  /// anew when it is acquired again.
  void abandon();

  /// Extends the window of `lane` as far as places go, and appends what has to be copied. Steps are claimed as a whole,
  /// and copies gathered until they can travel together; but where not even the next step finds room, because another
  /// is in use, as many of its weights as do.
  void prefetch(int lane, std::vector<Batch>& out);

  /// True when the step that `lane` executes next is not wholly on its way.
  bool starved(int lane) const { return !windows_[lane].empty() && windows_[lane].head == windows_[lane].cursor; }

  /// Leases every weight of `step` to `lane`, or none. What is not on its way yet is appended to `out`, and counted as
  /// a miss. False when leases hold too much of the ring; nothing is leased then.
  bool acquire(int lane, const Step& step, std::vector<Batch>& out);

  /// Ends one lease. After `used`, the bytes may be overwritten.
  void release(int lane, WeightId weight, FencePtr used);

  /// The place of a leased weight, and the copies that fill it.
  std::uint64_t place(WeightId weight) const { return slots_[weight]->place; }
  const ArrivalPtr& arrival(WeightId weight) const { return slots_[weight]->arrival; }

  std::uint64_t misses() const { return misses_; }
  std::vector<WeightId> leased() const;

  /// Bytes that have been fetched and not been leased yet: what the link carries for steps to come.
  std::uint64_t bytes_ahead() const;

  /// All others that have been fetched; what was fetched again, since it had failed, once.
  std::uint64_t bytes_used() const { return fetched_ - bytes_ahead(); }
  const Ring& ring() const { return ring_; }

  /// All that later decisions and counts depend on: two passes that end with the same layout go on alike.
  std::vector<std::uint64_t> layout() const;

 private:
  struct Slot {
    std::uint64_t place;
    ArrivalPtr arrival;
    int claims = 0;
    int leases = 0;
    bool fresh = true;             // not leased yet
    bool failed = false;           // its copy, and that has been told
    std::vector<FencePtr> readers; // the last of each lane
  };
  struct Window {
    std::shared_ptr<const Sequence> sequence;
    std::uint64_t cursor = 0; // steps since `expect` that have been executed
    std::uint64_t head = 0;   // steps since `expect` that have been claimed
    std::size_t part = 0;     // weights of the step at `head` that have been claimed
    std::uint64_t ahead = 0;  // bytes of all that is claimed
    std::uint64_t total = 0;  // bytes of all steps of the sequence
    bool active = false;
    bool empty() const { return !sequence || sequence->empty(); }
    const Step& at(std::uint64_t step) const { return (*sequence)[step % sequence->size()]; }
    std::uint64_t limit() const { return empty() ? cursor : cursor + sequence->size(); }
    bool claims_nothing() const { return head == cursor && part == 0; }
  };

  bool follow(Window& window, const Step& step);
  bool claim_step(Window& window, std::vector<Fetch>& fetches);
  bool claim_weight(Window& window, std::vector<Fetch>& fetches);
  void claim_what_is_here(Window& window);
  void pass_over(Window& window);
  void note_claim(Window& window, WeightId weight);
  void forget_claim(Window& window, WeightId weight);
  WeightId step_back(Window& window);
  void drop_last_claim(Window& window);
  bool drop_farthest_claim();
  void free_if_idle(WeightId weight);
  void fetch_what_failed(const Step& step, std::vector<Batch>& out);
  bool allocate(const Step& weights, std::vector<Fetch>& fetches);
  void roll_back(std::vector<Fetch>& fetches, std::uint64_t ring_cursor);
  void commit(const std::vector<Fetch>& fetches, std::vector<Batch>& out);
  std::uint64_t bytes_of(const Step& step) const;
  static std::uint64_t bytes_of(const std::vector<Fetch>& fetches);
  std::uint64_t share() const;

  std::vector<std::uint64_t> bytes_;
  Ring ring_;
  Gatherer gatherer_;
  std::vector<std::optional<Slot>> slots_; // by weight
  std::vector<Window> windows_;            // by lane
  std::uint64_t misses_ = 0;
  std::uint64_t fetched_ = 0; // bytes
};

} // namespace offload
