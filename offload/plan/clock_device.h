#pragma once

#include <cstdint>
#include <deque>
#include <limits>
#include <memory>
#include <optional>
#include <queue>
#include <vector>

#include <offload/core/link.h>

namespace offload {

/// A point in a stream of a ClockDevice.
class Moment final : public Fence {
 public:
  using Fence::Fence;

  bool reached() const { return reached_; }

 private:
  friend class ClockDevice;

  bool reached_ = false;
  std::vector<std::size_t> waiting_; // streams
};
using MomentPtr = std::shared_ptr<Moment>;

/// A device that keeps time: a copy stream, and lanes that share a processor. What is enqueued on a stream happens in
/// its order, each as soon as it may; the processor serves lanes in the order in which they are ready. Times are
/// microseconds since the beginning. Not synchronised.
class ClockDevice {
 public:
  /// A copy, or a step that was computed.
  struct Activity {
    enum class Kind : std::uint8_t { copy, compute } kind;
    std::size_t number; ///< that was given with it
    double begin_us;
    double us;
  };

  /// Copies and steps are appended to `activities` when they begin, unless that is null. It outlives this.
  explicit ClockDevice(int lanes, std::vector<Activity>* activities = nullptr)
      : streams_(static_cast<std::size_t>(lanes) + 1), activities_(activities) {}

  /// Fences are channels of core/link.h: of lanes, and of the link.
  void copy(double us, std::size_t number = 0) { enqueue(kCopies, {Operation::Kind::timed, us, nullptr, number}); }
  void compute(int lane, double us, std::size_t number = 0) {
    enqueue(stream_of(lane), {Operation::Kind::timed, us, nullptr, number});
  }
  void wait_used(const FencePtr& used) { enqueue(kCopies, {Operation::Kind::wait, 0, moment_of(used)}); }
  void wait_arrived(int lane, const FencePtr& arrived) {
    enqueue(stream_of(lane), {Operation::Kind::wait, 0, moment_of(arrived)});
  }
  MomentPtr record_arrived() { return record(kCopies, Fence::of_link()); }
  MomentPtr record_used(int lane) { return record(stream_of(lane), lane); }

  double now_us() const { return now_us_; }

  /// When something happens next; none when nothing does.
  std::optional<double> next_us() const;

  /// Time goes on to then. It is no later than next_us(), if that is a time.
  void advance(double us);

  /// What lanes have waited for copies, all together, as far as it is over.
  double stall_us() const { return stall_us_; }

  /// How long the link and the processor have worked, with what is at work to its end.
  double copies_us() const { return copies_us_; }
  double computes_us() const { return computes_us_; }

 private:
  struct Operation {
    enum class Kind { wait, timed, record } kind;
    double us = 0;
    MomentPtr moment;
    std::size_t number = 0;
  };
  struct Stream {
    std::deque<Operation> operations;
    bool busy = false;         // with the first of them
    double waits_since_us = 0; // for a moment
  };
  struct Completion {
    double us;
    std::uint64_t number; // of those at the same time, the one that began first comes first
    std::size_t stream;
    bool operator>(const Completion& other) const { return us != other.us ? us > other.us : number > other.number; }
  };

  static constexpr std::size_t kCopies = 0;
  static std::size_t stream_of(int lane) { return static_cast<std::size_t>(lane) + 1; }
  static MomentPtr moment_of(const FencePtr& fence) { return std::static_pointer_cast<Moment>(fence); }

  MomentPtr record(std::size_t stream, int channel);
  void enqueue(std::size_t stream, Operation operation);
  void run(std::size_t stream);
  void run_ready();
  void start(std::size_t stream, const Operation& operation);

  std::vector<Stream> streams_;
  std::vector<Activity>* const activities_; // null: none
  std::vector<std::size_t> ready_;          // streams that may go on
  std::priority_queue<Completion, std::vector<Completion>, std::greater<>> completions_;
  std::uint64_t started_ = 0;
  double now_us_ = 0;
  double processor_free_us_ = 0;
  double stall_us_ = 0;
  double copies_us_ = 0;
  double computes_us_ = 0;
};

} // namespace offload
