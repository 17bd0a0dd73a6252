#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <mutex>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include <offload/core/link.h>

namespace offload::test {

/// Which of the operations that may run next does.
enum class Order {
  copies_late,  ///< compute first: a compute stream that does not wait reads what is not there
  compute_late, ///< copies first: a copy that does not wait overwrites what is still to be read
  random,       ///< by the seed, and some of it while the host still enqueues
};

/// Where a fence of a lane lies, between the two that the contract of Link allows.
enum class Fences {
  immediate, ///< where the lane was at record_used()
  deferred,  ///< where the lane is when it is first waited for, or at record_now()
};

enum class Call { wait, copy, record_arrived, wait_arrived, record_used, record_now, synchronize };
constexpr std::size_t kCalls = 7;

/// A device whose streams are queues that run later: on synchronize() up to the fence, on run_all() to the end.
///
/// The order is any that the recorded waits allow, so a wait that is missing shows: as wrong bytes, or as a read that
/// runs before a copy that it was enqueued after (and the other way round), whatever the bytes are. All functions may
/// be called from any thread; memory is touched only while operations run, under one mutex.
class FakeLink final : public Link {
 public:
  explicit FakeLink(int lanes = 1, Order order = Order::random, std::uint32_t seed = 1,
                    Fences fences = Fences::immediate);

  /// Enqueues a kernel on `lane` that reads `bytes` at `data` and compares them with `expected`.
  void read(int lane, const std::byte* data, const std::byte* expected, std::uint64_t bytes, std::string name);

  /// The link can not read this memory: it is not page-locked.
  void forbid(const std::byte* data, std::uint64_t bytes);

  void run_all();

  /// From now on, calls of this kind are refused: after `after` of them, `times` of them.
  void refuse(Call call, std::uint64_t after, std::uint64_t times = 1);

  std::uint64_t calls(Call call) const;

  /// What went wrong on the device so far; empty when all is well.
  std::vector<std::string> problems() const;

  void wait(const Fence& used) override;
  FencePtr record_arrived() override;
  void wait_arrived(int lane, const Fence& arrived) override;
  FencePtr record_used(int lane) override;
  void record_now(const Fence& used) override;
  bool reached(const Fence& arrived) override;
  void synchronize(const Fence& fence) override;
  double stall_us() override { return 0; }

 protected:
  void enqueue_copy(void* dst, const void* src, std::size_t bytes) override;

 private:
  /// All that a stream had enqueued when it was `length` operations long.
  struct Point {
    std::size_t stream;
    std::uint64_t length;
  };
  struct FakeFence;

  enum class Kind { wait, copy, read };
  struct Operation {
    Kind kind;
    std::uint64_t number = 0; // in the order of all calls
    Point after{};            // of a wait
    std::byte* dst = nullptr; // of a copy
    const std::byte* src = nullptr;
    const std::byte* expected = nullptr;
    std::uint64_t bytes = 0;
    std::string name;
  };
  struct Stream {
    std::deque<Operation> pending;
    std::uint64_t enqueued = 0;
    std::uint64_t done = 0;
  };

  static constexpr std::size_t kCopies = 0; // the stream of the link; that of a lane is one more than its number

  Point point_of(const Fence& fence) const;
  void count(Call call);
  void enqueue(std::size_t stream, Operation operation);
  bool is_done(const Point& point) const { return streams_[point.stream].done >= point.length; }
  std::optional<std::size_t> choose();
  bool run_one();
  void run(const Operation& operation);

  mutable std::mutex mutex_;
  const Order order_;
  const Fences fences_;
  std::mt19937 random_;
  std::vector<Stream> streams_;
  std::uint64_t number_ = 0;
  std::array<std::uint64_t, kCalls> calls_{};
  std::array<std::uint64_t, kCalls> refused_from_{};
  std::array<std::uint64_t, kCalls> refused_to_{};
  std::vector<std::pair<const std::byte*, std::uint64_t>> forbidden_;
  std::vector<std::string> problems_;
};

/// A link that skips one wait, or all of one kind: as if a line were missing in the streamer.
class SkippingLink final : public Link {
 public:
  struct Skip {
    Call call;
    std::optional<std::uint64_t> only; ///< the n-th; all when not given
  };

  SkippingLink(Link& link, Skip skip) : link_(link), skip_(skip) {}

  void wait(const Fence& used) override {
    if (!skips(Call::wait)) {
      link_.wait(used);
    }
  }
  FencePtr record_arrived() override { return link_.record_arrived(); }
  void wait_arrived(int lane, const Fence& arrived) override {
    if (!skips(Call::wait_arrived)) {
      link_.wait_arrived(lane, arrived);
    }
  }
  FencePtr record_used(int lane) override { return link_.record_used(lane); }
  void record_now(const Fence& used) override { link_.record_now(used); }
  void synchronize(const Fence& fence) override {
    if (!skips(Call::synchronize)) {
      link_.synchronize(fence);
    }
  }
  bool reached(const Fence& arrived) override { return link_.reached(arrived); }
  double stall_us() override { return link_.stall_us(); }

 protected:
  void enqueue_copy(void* dst, const void* src, std::size_t bytes) override { link_.copy(dst, src, bytes); }

 private:
  bool skips(Call call) { return call == skip_.call && (!skip_.only || seen_++ == *skip_.only); }

  Link& link_;
  const Skip skip_;
  std::atomic<std::uint64_t> seen_ = 0;
};

} // namespace offload::test
