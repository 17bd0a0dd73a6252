#pragma once

// What the tests of waits work with: a clock against waits without end, a slow driver, and a device with its memory.

#include <gtest/gtest.h>

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <mutex>
#include <thread>

#include <offload/device/host_link.h>
#include <offload/device/lane_gate.h>
#include <offload/error.h>

#include "streaming.h"
#include "threads.h"

namespace offload::test {

/// Ends the process, which a thread that waits for ever would not let end, when a test takes too long.
class Deadline {
 public:
  Deadline() : thread_([this] { run(); }) {}
  ~Deadline() {
    {
      const std::lock_guard lock(mutex_);
      over_ = true;
    }
    changed_.notify_all();
    thread_.join();
  }
  Deadline(const Deadline&) = delete;
  Deadline& operator=(const Deadline&) = delete;

 private:
  void run() {
    std::unique_lock lock(mutex_);
    if (!changed_.wait_for(lock, std::chrono::seconds(10), [&] { return over_; })) {
      std::fputs("deadlock: the test does not end\n", stderr);
      std::_Exit(1);
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  bool over_ = false;
  std::thread thread_;
};

class WaitsBytes : public testing::Test {
 private:
  Deadline deadline_;
};

/// A link that holds the calling thread in one kind of call until release(): a slow driver.
class SlowLink final : public Link {
 public:
  explicit SlowLink(FakeLink& link) : link_(link) {}

  void hold(Call call) {
    const std::lock_guard lock(mutex_);
    held_ = call;
  }
  void release() {
    {
      const std::lock_guard lock(mutex_);
      held_.reset();
    }
    changed_.notify_all();
  }

  /// Returns when a thread is held.
  void await_caller() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return inside_ > 0; });
  }

  void wait(const Fence& used) override {
    pass(Call::wait);
    link_.wait(used);
  }
  FencePtr record_arrived() override { return link_.record_arrived(); }
  void wait_arrived(int lane, const Fence& arrived) override { link_.wait_arrived(lane, arrived); }
  FencePtr record_used(int lane) override { return link_.record_used(lane); }
  void record_now(const Fence& used) override { link_.record_now(used); }
  bool reached(const Fence& arrived) override { return link_.reached(arrived); }
  void synchronize(const Fence& fence) override {
    pass(Call::synchronize);
    link_.synchronize(fence);
  }
  double stall_us() override { return link_.stall_us(); }

 protected:
  void enqueue_copy(void* dst, const void* src, std::size_t bytes) override {
    pass(Call::copy);
    link_.copy(dst, src, bytes);
  }

 private:
  void pass(Call call) {
    std::unique_lock lock(mutex_);
    ++inside_;
    changed_.notify_all();
    changed_.wait(lock, [&] { return held_ != call; });
    --inside_;
  }

  FakeLink& link_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::optional<Call> held_;
  int inside_ = 0;
};

/// Weights of one unit each, and memory that the test may write once nobody should use it any more.
struct Device {
  Device(std::size_t weights, std::size_t ring_units, std::size_t buffer_count, Order order = Order::copies_late,
         int lane_count = 1)
      : fake(lane_count, order, 1, Fences::deferred),
        slow(fake),
        lanes(lane_count),
        host(weights),
        ring(ring_units),
        staging(buffer_count) {
    for (std::size_t i = 0; i < weights; ++i) {
      std::memset(host[i].bytes, static_cast<int>(i + 1), kUnit);
      addresses.push_back(in_memory(host[i].bytes));
    }
  }
  ~Device() {
    streamer.reset();
    store.reset();
    fake.run_all();
  }

  std::byte* ring_bytes() { return ring.front().bytes; }
  void use_direct_store() { store = make_direct_store(slow, addresses, ring_bytes()); }
  void use_staged_store(int threads = 1) {
    store = make_staged_store(slow, addresses, ring_bytes(),
                              {staging.front().bytes, kUnit, static_cast<int>(staging.size())}, threads);
  }
  void use_streamer() {
    StreamerConfig config;
    config.link = &slow;
    config.store = store.get();
    config.ring = ring_bytes();
    config.ring_bytes = ring.size() * kUnit;
    config.lanes = lanes;
    config.weights = shared_table(std::vector<std::uint64_t>(host.size(), kUnit));
    streamer = std::make_unique<Streamer>(std::move(config));
  }

  /// Gives the store weight i for place i of the ring, each in a batch of its own.
  void issue_all() {
    for (std::size_t i = 0; i < host.size(); ++i) {
      store->issue({{{static_cast<WeightId>(i), i * kUnit, kUnit}}, {}, std::make_shared<Arrival>()});
    }
  }

  void read(int lane, WeightId weight) {
    fake.read(lane, streamer->address(weight), addresses[weight].memory, kUnit, "w" + std::to_string(weight));
  }
  void visit(int lane, WeightId weight) {
    streamer->acquire(lane, {weight});
    read(lane, weight);
    streamer->release(lane, {weight});
  }

  void expect_no_problems() {
    fake.run_all();
    for (const std::string& problem : fake.problems()) {
      ADD_FAILURE() << problem;
    }
  }
  void expect_all_in_ring() {
    fake.run_all();
    for (std::size_t i = 0; i < host.size(); ++i) {
      EXPECT_EQ(std::memcmp(ring[i].bytes, host[i].bytes, kUnit), 0) << "w" << i << " has wrong bytes";
    }
  }

  FakeLink fake;
  SlowLink slow;
  const int lanes;
  std::vector<Unit> host;
  std::vector<Unit> ring;
  std::vector<Unit> staging;
  HostPlaces addresses;
  std::unique_ptr<Store> store;
  std::unique_ptr<Streamer> streamer;
};

} // namespace offload::test
