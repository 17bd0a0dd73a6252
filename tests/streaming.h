#pragma once

#include <algorithm>
#include <array>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include <offload/feed/stores.h>
#include <offload/ring/streamer.h>

#include "fake_link.h"
#include "weight_tables.h"

namespace offload::test {

/// Ring, weights and buffers are counted in units of what the ring is aligned to.
constexpr std::uint64_t kUnit = 512;

struct alignas(kUnit) Unit {
  std::byte bytes[kUnit];
};

enum class Host { direct, staged, mixed }; ///< mixed: every other weight is page-locked

inline constexpr std::array kOrders = {Order::copies_late, Order::compute_late, Order::random};

struct Shape {
  std::vector<std::uint64_t> units; ///< of each weight
  std::uint64_t ring_units = 0;
  std::uint64_t batch_units = 0;
  int lanes = 1;
  Order order = Order::random;
  std::uint32_t seed = 1;
  Host host = Host::direct;
  std::uint64_t buffer_units = 1; ///< of each staging buffer
  int buffers = 2;
  int threads = 2;
  std::optional<SkippingLink::Skip> skip;
};

using SequencePtr = std::shared_ptr<const Sequence>;
SequencePtr share(Sequence sequence);

/// Steps 0, 1, ... of one weight each.
SequencePtr each_once(std::size_t weights);

/// A streamer over a fake link, with real bytes: weight i is named "w<i>" and has bytes of its own.
class Streaming {
 public:
  explicit Streaming(const Shape& shape);
  ~Streaming();

  void begin(int lane, const SequencePtr& sequence) { streamer_->begin(lane, sequence); }
  void end(int lane) { streamer_->end(lane); }
  void acquire(int lane, const Step& step) { streamer_->acquire(lane, step); }
  void read(int lane, const Step& step); ///< enqueues kernels that check every byte
  void release(int lane, const Step& step) { streamer_->release(lane, step); }
  void visit(int lane, const Step& step);

  /// A call that expects `sequence` and executes `steps`.
  void call(int lane, const SequencePtr& sequence, const Sequence& steps);
  void call(int lane, const SequencePtr& sequence) { call(lane, sequence, *sequence); }

  /// Lets the device finish. What went wrong there, one in a line; empty when all is well.
  std::string finish();

  FakeLink& link() { return link_; }
  Streamer& streamer() { return *streamer_; }

  /// What the calls so far have brought over the link and used.
  std::uint64_t bytes_used() { return std::min(link_.bytes(), streamer_->counts().bytes_used); }

 private:
  FakeLink link_;
  std::optional<SkippingLink> skipping_;
  std::vector<Unit> host_;
  std::vector<Unit> ring_;
  std::vector<Unit> staging_;
  HostPlaces weights_;
  std::vector<std::uint64_t> bytes_;
  std::unique_ptr<Store> store_;
  std::unique_ptr<Streamer> streamer_;
};

/// Reproducible choices.
class Dice {
 public:
  explicit Dice(std::uint32_t seed) : random_(seed) {}
  std::uint64_t from(std::uint64_t low, std::uint64_t high) { return low + random_() % (high - low + 1); }
  bool chance(int percent) { return from(1, 100) <= static_cast<std::uint64_t>(percent); }

  /// Up to `most` of `weights`, each once, ascending.
  Step step(std::size_t weights, std::size_t most);
  Sequence sequence(std::size_t steps, std::size_t weights, std::size_t most);
  std::vector<std::uint64_t> sizes(std::size_t count, std::uint64_t most);

 private:
  std::mt19937 random_;
};

std::uint64_t sum(const std::vector<std::uint64_t>& sizes, const Step& step);
std::uint64_t largest(const std::vector<std::uint64_t>& sizes, const Sequence& sequence);
std::uint64_t total(const std::vector<std::uint64_t>& sizes, const Sequence& sequence);

} // namespace offload::test
