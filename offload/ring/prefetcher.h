#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include <offload/core/batch.h>
#include <offload/ring/slot_table.h>

namespace offload {

/// Decides what is brought ahead of its use. Each lane has a *window* on the sequence that it is expected to execute,
/// from the step that comes next (cursor) to the last one prefetched (head, and some weights of the step after it).
/// What is in a window is claimed.
class Prefetcher {
 public:
  Prefetcher(SlotTable& slots, int lanes) : slots_(slots), windows_(lanes) {}

  /// Expects `lane` to execute `sequence` from its first step, over and over. What it claimed so far keeps its place as
  /// far as the new window goes without a gap.
  void expect(int lane, std::shared_ptr<const Sequence> sequence);

  /// Lanes in a call share the ring evenly; a lane that rests looks ahead only as far as they leave room.
  void set_active(int lane, bool active) { windows_[lane].active = active; }

  /// Extends the window of `lane` as far as places go, and appends what has to be copied. Steps are claimed as a whole,
  /// and copies gathered until they can travel together; but where not even the next step finds room, because another
  /// is in use, as many of its weights as do.
  void prefetch(int lane, std::vector<Batch>& out);

  /// True when the step that `lane` executes next is not wholly on its way.
  bool starved(int lane) const { return !windows_[lane].empty() && windows_[lane].head == windows_[lane].cursor; }

  /// Moves the window of `lane` to the next place in its sequence where `step` stands. False when it stands nowhere.
  bool follow(int lane, const Step& step);

  /// The step that comes next is executed: its claims end. `step_back` undoes that while nothing is claimed.
  void step_on(int lane);
  void step_back(int lane);

  /// Claims what comes next as far as it has places already.
  void claim_placed(int lane);

  /// Drops the claim that is needed last, as far as that can be said across lanes: the last one of the longest window.
  /// False when there is none.
  bool drop_farthest_claim();
  void drop_all_claims();

  /// Appends what later decisions depend on.
  void append_layout(std::vector<std::uint64_t>& layout) const;

 private:
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
    WeightId next() const { return at(head)[part]; }
    std::uint64_t limit() const { return empty() ? cursor : cursor + sequence->size(); }
    bool claims_nothing() const { return head == cursor && part == 0; }
  };

  bool claim_batch(Window& window, SlotTable::Transaction& attempt, std::uint64_t wanted, bool in_need);
  bool claim_step(Window& window, SlotTable::Transaction& attempt);
  bool claim_weight(Window& window, SlotTable::Transaction& attempt);
  void extend(Window& window);
  void drop_last_claim(Window& window);
  std::uint64_t share() const;

  SlotTable& slots_;
  std::vector<Window> windows_; // by lane
};

} // namespace offload
