#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include <offload/core/batch.h>
#include <offload/priority.h>
#include <offload/ring/slot_table.h>
#include <offload/ring/under_way.h>

namespace offload {

// Note [Shared passes]
//
// Calls that run at the same time want the same weights. So they share a *pass*, in which each weight crosses the link
// once: whatever is brought for one of them is claimed by all that will read it, and keeps its place until the last has
// leased it. None of them is further ahead than the ring is long: whoever is, waits for the others.
//
// A pass has a door. A call that begins joins the newest pass as long as all that this pass has had, of what the call
// will read, is still there; it then catches up without the link. So what a shared pass has had is kept until the room
// is needed. Otherwise it begins the next pass, together with all that come after it, and waits: nothing is brought for
// a pass while an earlier one still has something to bring. Since an earlier pass only gets shorter, it waits for no
// longer than that pass.
//
//        steps      0   1   2   3   4   5   6   7   8   9
//        call A                     [lease]                       claims 4..7
//        call B         [lease]                                   claims 1..7: what A has read stays for B
//        ring           1   2   3   4   5   6   7                 full: A waits at 8 until B has read 1
//        call C begins                                            0 has gone: the next pass, after 9
//
// On the host a call is through long before its first weight has arrived, and would leave its pass behind. So while
// calls share, half the ring is under way, of which each kind of calls has its share, and whoever wants more waits on
// the host until some of it has arrived. The door is then open for about as long as the link takes for the ring, so
// that callers whose calls have ended together begin the next pass together. A lane whose pass is its own, as the one
// before was, never waits.
//
// Each module has passes of its own: its calls wait for no pass of another. Calls of other modules, and those that read
// other weights or in another order, go on beside each other as far as the ring has room for all; each kind of them
// looks ahead in its share of it, which is larger the higher its priority. Since copies arrive in the order in which
// they were asked for, it has the same share of the link. A call that finds no room where no other will bring what it
// wants has a *need*: until it is met, nothing more is brought ahead for others.

/// Passes that calls were in; each brought what they read over the link, at most once for all of them.
struct PassCounts {
  std::uint64_t passes = 0;
  std::uint64_t calls = 0; ///< that were in one of them; calls that are expected to read nothing are in none
};

/// Decides what is brought ahead of its use. Each lane has a *window* on the sequence that it is expected to execute,
/// from the step that comes next (cursor) to the last one prefetched (head, and some weights of the step after it).
/// What is in a window is claimed. See Note [Shared passes].
class Prefetcher {
 public:
  Prefetcher(SlotTable& slots, int lanes)
      : slots_(slots), windows_(lanes), had_(slots.size()), under_way_(slots.ring().bytes()) {}

  /// A call of a module begins on `lane`, which is expected to execute `sequence`. It joins the newest pass of that, if
  /// its door is open. Modules are told apart by the id of their first weight.
  void begin(int lane, std::shared_ptr<const Sequence> sequence, WeightId module, Priority priority);

  /// It has ended: from now on its lane rests.
  void end(int lane);

  /// Expects `lane` to execute `sequence` from its first step, over and over. What it claimed so far keeps its place as
  /// far as the new window goes without a gap.
  void expect(int lane, std::shared_ptr<const Sequence> sequence, WeightId module);

  /// Extends the window of `lane` as far as places go, and appends what has to be copied. Steps are claimed as a whole,
  /// and copies gathered until they can travel together; but where not even the next step finds room, because another
  /// is in use, as many of its weights as do. A lane that rests looks ahead only while no other is in a call.
  void prefetch(int lane, std::vector<Batch>& out);

  /// True when nothing may be brought for `lane` now, since others come first.
  bool comes_after_others(int lane) const;

  /// The copies that have to arrive before `bytes` more are brought for `lane`; null when there are none.
  /// note_arrived() says that they have.
  ArrivalPtr awaited(int lane, std::uint64_t bytes) const;
  void note_arrived(const ArrivalPtr& last) { under_way_.note_arrived(last); }

  /// `batches`, from `first` on, have been handed out for `lane`.
  void note_handed_out(int lane, const std::vector<Batch>& batches, std::size_t first) {
    under_way_.add(batches, first, windows_[lane].kind);
  }

  /// True when other lanes are in a call, for which `lane` may have to wait.
  bool has_others(int lane) const;

  /// True when other lanes are in a call, or were in the pass of `lane` or the one before: then what is brought for it
  /// may have to wait until earlier copies have arrived.
  bool shares(int lane) const;

  /// `lane` found no room for its next step, `expected` or not; or it has found room again.
  void note_no_room(int lane, bool expected);
  void note_room(int lane) { windows_[lane].need = 0; }

  /// True when the step that `lane` executes next is not wholly on its way.
  bool starved(int lane) const { return !windows_[lane].empty() && windows_[lane].head == windows_[lane].cursor; }

  /// Moves the window of `lane` to the next place in its sequence where `step` stands. False when it stands nowhere.
  bool follow(int lane, const Step& step);

  /// The step that comes next is executed: its claims end.
  void step_on(int lane);

  /// Claims what comes next as far as it has places already; the same for all lanes in a call.
  void claim_placed(int lane);
  void claim_placed_for_all();

  /// Drops the claim that is needed last, as far as that can be said across lanes: the last one of the longest window.
  /// Of lanes in the pass of `lane`, or in an earlier one, only what is beyond the share of their kind goes, unless
  /// `any` may go. False when there is none.
  bool drop_farthest_claim(int lane, bool any);
  void drop_all_claims();

  /// Drops what is claimed for calls that may still join a pass.
  void drop_door_claims();

  const PassCounts& counts() const { return counts_; }

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
    std::size_t kind = 0;     // equal for equal sequences
    Priority priority = Priority::normal;
    bool active = false;     // in a call
    std::uint64_t first = 0; // step of the call, since `expect`
    std::uint64_t pass = 0;  // of the call, among those of its module
    WeightId module = 0;
    std::uint64_t need = 0; // for room: lower ones came before; 0 when there is none

    bool empty() const { return !sequence || sequence->empty(); }
    const Step& at(std::uint64_t step) const { return (*sequence)[step % sequence->size()]; }
    WeightId next() const { return at(head)[part]; }
    std::uint64_t limit() const { return empty() ? cursor : cursor + sequence->size(); }

    /// True while something has to be brought for the rest of its call.
    bool fetches() const { return !empty() && head < first + sequence->size(); }

    /// That the step at the head belongs to: beyond the end of the call, to the next one.
    std::uint64_t pass_of_head() const { return empty() ? pass : pass + (head - first) / sequence->size(); }
    bool claims_nothing() const { return head == cursor && part == 0; }
  };

  struct Passes {
    std::uint64_t newest = 0;
    std::uint64_t joined = ~std::uint64_t{0}; // the newest that a call has joined
  };

  struct Kept {
    WeightId module;
    WeightId weight;
  };

  bool place(SlotTable::Transaction& attempt, const Step& weights);
  bool claim_batch(Window& window, SlotTable::Transaction& attempt, std::uint64_t wanted, bool in_need);
  bool claim(Window& window, SlotTable::Transaction& attempt, const Step& weights);
  bool claim_rest_of_step(Window& window, SlotTable::Transaction& attempt);
  void note_had(int lane, std::uint64_t from);
  bool close_door();
  void drop_door_claims_of(WeightId module);
  bool is_behind(const Window& window) const;
  void extend(Window& window);
  void drop_last_claim(Window& window);
  std::uint64_t weight_of(const Window& kind) const;
  std::uint64_t share(const Window& of) const;

  SlotTable& slots_;
  std::vector<Window> windows_;    // by lane
  std::vector<std::uint64_t> had_; // by weight: the newest pass that it was claimed in
  std::vector<Kept> door_;         // of what newest passes have had: claimed for calls that may join them
  UnderWay under_way_;
  std::map<WeightId, Passes> passes_; // by module
  PassCounts counts_;
  std::uint64_t needs_ = 0; // that there have been
};

} // namespace offload
