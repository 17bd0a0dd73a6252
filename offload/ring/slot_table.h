#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include <offload/core/batch.h>
#include <offload/ring/gather.h>
#include <offload/ring/ring.h>

namespace offload {

/// Which weights have a place in the ring, and who needs them there. A weight keeps its place while it has a claim (a
/// step ahead will read it) or a lease (a node reads it). Not synchronised.
class SlotTable {
 public:
  /// See Scheduler.
  SlotTable(std::vector<std::uint64_t> bytes, std::uint64_t ring_bytes, std::uint64_t batch_bytes, int lanes);

  bool has_place(WeightId weight) const { return slots_[weight].has_value(); }

  /// Of a weight that has a place.
  std::uint64_t place(WeightId weight) const { return slots_[weight]->place; }
  const ArrivalPtr& arrival(WeightId weight) const { return slots_[weight]->arrival; }

  /// A weight that has a place keeps it until the claim is dropped.
  void claim(WeightId weight) { ++slots_[weight]->claims; }

  /// What nobody needs any more loses its place.
  void drop_claim(WeightId weight);

  /// True when a weight that has a place has it by one claim only.
  bool has_only_one_claim(WeightId weight) const { return slots_[weight]->claims == 1 && slots_[weight]->leases == 0; }

  /// Ends one lease. After `used`, the bytes may be overwritten.
  void release(WeightId weight, FencePtr used);

  /// From now on, leased weights whose copy has failed are copied anew when refetch() asks for them.
  void mark_failed();

  /// Copies what of `step` is marked into the same place: nobody has read there. How many that were.
  std::size_t refetch(const Step& step, std::vector<Batch>& out);

  /// Places, claims and leases that are taken together. What has not been committed is undone in the end.
  class Transaction {
   public:
    explicit Transaction(SlotTable& slots) : slots_(slots), cursor_(slots.ring_.cursor()) {}
    ~Transaction();
    Transaction(const Transaction&) = delete;
    Transaction& operator=(const Transaction&) = delete;

    /// The next place is the first of the ring: each pass places what it brings as the last one did.
    void start_over() { slots_.ring_.set_cursor(0); }

    /// Gives each of `weights`, which have no place, one: all in one piece, so that a ring that is free always does for
    /// a step that fits it, else wherever there is room. False, and nothing changed, when there is not enough.
    bool place(const Step& weights);

    /// Of a weight that has a place.
    void claim(WeightId weight);
    void lease(WeightId weight);

    /// Takes the place of a weight that is leased by this alone, and claimed by nobody. False for others.
    bool displace(WeightId weight);

    /// Bytes that will be copied.
    std::uint64_t bytes() const;

    /// Appends the copies that fill the new places.
    void commit(std::vector<Batch>& out);

   private:
    void take_back_places(std::size_t first);

    SlotTable& slots_;
    const std::uint64_t cursor_; // of the ring
    std::vector<Fetch> fetches_; // into new places
    std::vector<WeightId> claims_;
    std::vector<WeightId> leases_;
    bool committed_ = false;
  };

  std::size_t size() const { return bytes_.size(); } ///< weights
  std::uint64_t bytes(WeightId weight) const { return bytes_[weight]; }
  std::uint64_t bytes(const Step& step) const;
  std::uint64_t batch_bytes() const { return gatherer_.batch_bytes(); }
  const Ring& ring() const { return ring_; }
  std::vector<WeightId> leased() const;

  /// Bytes that have been fetched and not leased yet; and all others that have been fetched. What was fetched again,
  /// since its copy had failed, counts once.
  std::uint64_t bytes_ahead() const;
  std::uint64_t bytes_used() const { return fetched_ - bytes_ahead(); }

  /// True when host memory ran out while a transaction was undone: some places stay taken for ever.
  bool lost() const { return lost_; }

  /// Appends what later decisions depend on.
  void append_layout(std::vector<std::uint64_t>& layout) const;

 private:
  struct Slot {
    std::uint64_t place;
    ArrivalPtr arrival;
    int claims = 0;
    int leases = 0;
    bool fresh = true;             // not leased yet
    bool failed = false;           // its copy, and that has been reported
    std::vector<FencePtr> readers; // the last of each lane
  };

  void free_if_idle(WeightId weight);
  void hand_out(const std::vector<Fetch>& fetches, std::vector<Batch>& out);

  std::vector<std::uint64_t> bytes_; // by weight
  Ring ring_;
  Gatherer gatherer_;
  std::vector<std::optional<Slot>> slots_; // by weight
  std::uint64_t fetched_ = 0;              // bytes
  bool lost_ = false;
};

} // namespace offload
