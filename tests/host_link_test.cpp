#include <gtest/gtest.h>

#include <cstring>
#include <vector>

#include <offload/device/host_link.h>
#include <offload/ring/streamer.h>

#include "streaming.h"
#include "threads.h"

namespace offload::test {
namespace {

TEST(HostLink, CopiesInOrderAndCounts) {
  const auto link = make_host_link();
  std::vector<std::byte> a(1000, std::byte{1});
  std::vector<std::byte> b(1000, std::byte{2});
  std::vector<std::byte> target(1000);
  link->copy(target.data(), a.data(), 1000);
  link->copy(target.data(), b.data(), 500);
  link->wait_arrived(0, *link->record_arrived());
  EXPECT_TRUE(std::equal(target.begin(), target.begin() + 500, b.begin()));
  EXPECT_TRUE(std::equal(target.begin() + 500, target.end(), a.begin()));
  EXPECT_EQ(link->bytes(), 1500U);
  EXPECT_EQ(link->copies(), 2U);
}

TEST(HostLink, CountsTheTimeThatLanesWait) {
  const auto link = make_host_link();
  EXPECT_EQ(link->stall_us(), 0);
  link->note_thread_wait(250);
  EXPECT_EQ(link->stall_us(), 250);
  const std::vector<std::byte> source(1 << 20, std::byte{1});
  std::vector<std::byte> target(1 << 20);
  link->copy(target.data(), source.data(), source.size());
  link->synchronize(*link->record_arrived());
  link->wait_arrived(0, *link->record_arrived());
  EXPECT_EQ(link->stall_us(), 250) << "the copy was there";
  for (int tries = 0; tries < 1000 && link->stall_us() == 250;
       ++tries) { // until one is under way when it is waited for
    link->copy(target.data(), source.data(), source.size());
    link->wait_arrived(0, *link->record_arrived());
  }
  EXPECT_GT(link->stall_us(), 250);
}

TEST(HostLink, FencesOfNothingAreReached) {
  const auto link = make_host_link();
  link->synchronize(*link->record_arrived());
  link->wait_arrived(0, *link->record_arrived());
  const FencePtr used = link->record_used(3);
  EXPECT_EQ(used->channel(), 3);
  link->wait(*used);
  link->synchronize(*used);
}

TEST(HostLink, EndsWithCopiesOnTheWay) {
  const std::vector<std::byte> source(1 << 20, std::byte{1});
  std::vector<std::byte> target(1 << 20);
  {
    const auto link = make_host_link();
    for (int i = 0; i < 8; ++i) {
      link->copy(target.data(), source.data(), source.size());
    }
  }
  EXPECT_EQ(target, source) << "what was enqueued is done";
}

TEST(HostLink, StreamsForSeveralLanes) {
  constexpr int kLanes = 2;
  constexpr std::uint64_t kBytes = 4096;
  constexpr std::size_t kWeights = 8;
  const auto link = make_host_link();
  std::vector<std::vector<std::byte>> weights;
  HostPlaces host;
  StreamerConfig config;
  for (std::size_t i = 0; i < kWeights; ++i) {
    weights.emplace_back(kBytes, static_cast<std::byte>(i + 1));
    host.push_back(in_memory(weights.back().data()));
  }
  std::vector<std::byte> ring(3 * kBytes);
  const auto store = make_direct_store(*link, host, ring.data());
  config.link = link.get();
  config.store = store.get();
  config.ring = ring.data();
  config.ring_bytes = ring.size();
  config.batch_bytes = kBytes;
  config.lanes = kLanes;
  config.weights = shared_table(std::vector<std::uint64_t>(kWeights, kBytes));
  Streamer streamer(std::move(config));
  const SequencePtr sequence = each_once(kWeights);
  std::atomic<int> wrong = 0;
  in_parallel(kLanes, [&](int lane) {
    for (int pass = 0; pass < 30; ++pass) {
      streamer.begin(lane, sequence);
      for (const Step& step : *sequence) {
        streamer.acquire(lane, step);
        wrong += std::memcmp(streamer.address(step[0]), weights[step[0]].data(), kBytes) == 0 ? 0 : 1;
        streamer.release(lane, step);
      }
      streamer.end(lane);
    }
  });
  EXPECT_EQ(wrong, 0);
}

} // namespace
} // namespace offload::test
