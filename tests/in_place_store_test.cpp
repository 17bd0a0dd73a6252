#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include <offload/device/host_link.h>
#include <offload/feed/stores.h>
#include <offload/io/file_reader.h>
#include <offload/ring/streamer.h>

#include "fake_disk.h"
#include "temporary_file.h"
#include "weight_tables.h"

namespace offload::test {
namespace {

/// A store that fills its ring in place with what lies in a file, and one weight that is in memory.
TEST(FileStore, IsRightOrAnErrorWhicheverReadGoesWrong) {
  constexpr std::uint64_t kUnit = 512ULL * 1000; // no multiple of what is read at once
  constexpr std::uint64_t kTrue = kUnit - 100;   // what of a unit is in the file
  constexpr std::size_t kWeights = 5;
  const std::string bytes = pattern(kWeights * kUnit);
  const TemporaryFile made(bytes);
  const auto file = std::make_shared<const File>(made.path());
  const std::string held = pattern(kUnit);
  for (const Fault fault : {Fault::none, Fault::fails, Fault::comes_short, Fault::is_slow}) {
    for (int read = 0; read < 8; ++read) {
      const auto from = read < 4 ? From::disk : From::cache;
      FileReader reader(file, std::make_unique<FakeDisk>(file, fault, read % 4, from));
      const auto link = make_host_link();
      std::vector<std::byte> ring(kWeights * kUnit);
      const HostSource source{&reader};
      HostPlaces host;
      for (std::size_t i = 0; i < kWeights; ++i) {
        host.push_back(in_file(source, i * kUnit + 7, kTrue));
      }
      host[2] = in_memory(reinterpret_cast<const std::byte*>(held.data()));
      const auto store = make_in_place_store(*link, host, ring.data(), 2);
      int failures = 0;
      for (int pass = 0; pass < 2; ++pass) {
        std::vector<ArrivalPtr> arrivals;
        std::fill(ring.begin(), ring.end(), std::byte{0});
        for (std::size_t i = 0; i < kWeights; ++i) {
          arrivals.push_back(std::make_shared<Arrival>());
          store->issue({{{static_cast<WeightId>(i), i * kUnit, kUnit}}, {}, arrivals.back()});
        }
        store->drain();
        for (std::size_t i = 0; i < kWeights; ++i) {
          ASSERT_TRUE(arrivals[i]->issued);
          if (!arrivals[i]->failure.empty()) {
            EXPECT_TRUE(arrivals[i]->of_archive);
            ++failures;
            continue;
          }
          link->synchronize(*arrivals[i]->fence);
          const char* expected = i == 2 ? held.data() : bytes.data() + i * kUnit + 7;
          EXPECT_EQ(std::memcmp(ring.data() + i * kUnit, expected, i == 2 ? kUnit : kTrue), 0) << "weight " << i;
        }
      }
      EXPECT_EQ(failures, fault == Fault::fails ? 1 : 0);
      EXPECT_EQ(link->bytes(), (2 * kWeights - failures) * kUnit);
    }
  }
}

TEST(FileStore, ComputeThatWaitsForAReadStalls) {
  constexpr std::uint64_t kUnit = 512ULL * 100;
  const TemporaryFile made(pattern(kUnit));
  const auto file = std::make_shared<const File>(made.path());
  FileReader reader(file, std::make_unique<FakeDisk>(file, Fault::is_slow, 0)); // 50 ms
  const auto link = make_host_link();
  std::vector<std::byte> ring(kUnit);
  const HostSource source{&reader};
  const auto store = make_in_place_store(*link, {in_file(source, 0, kUnit)}, ring.data(), 1);
  StreamerConfig config;
  config.link = link.get();
  config.store = store.get();
  config.ring = ring.data();
  config.ring_bytes = kUnit;
  config.batch_bytes = kUnit;
  config.weights = shared_table({kUnit});
  Streamer streamer(std::move(config));
  streamer.begin(0, std::make_shared<const Sequence>(Sequence{{0}}));
  streamer.acquire(0, {0});
  EXPECT_GT(link->stall_us(), 20e3);
  streamer.release(0, {0});
  streamer.end(0);
}

/// What the page cache has stays there, is counted, and is read as it is; what is not aligned is brought to the ring.
TEST(FileStore, LeavesOutOfTheRingWhatIsMapped) {
  constexpr std::uint64_t kUnit = 512ULL * 1000;
  const std::string bytes = pattern(4 * kUnit);
  const TemporaryFile made(bytes);
  const auto file = std::make_shared<const File>(made.path());
  FileReader reader(file, make_disk(file, FileReader::kReadsInFlight));
  const auto link = make_host_link();
  std::vector<std::byte> ring(3 * kUnit);
  const auto places = [&](const HostSource& source) {
    return HostPlaces{in_file(source, 0, kUnit), in_file(source, kUnit + 7, kUnit),
                      in_file(source, 3 * kUnit, kUnit - 3)};
  };
  for (const bool maps : {true, false}) {
    const HostSource source{&reader, nullptr, maps ? file : nullptr};
    const HostPlaces host = places(source);
    const auto store = make_in_place_store(*link, host, ring.data(), 1);
    const std::uint64_t counted = link->bytes();
    const auto arrival = std::make_shared<Arrival>();
    store->issue({{{0, 0, kUnit}, {1, kUnit, kUnit}, {2, 2 * kUnit, kUnit}}, {}, arrival});
    arrival->await_issued();
    ASSERT_EQ(arrival->failure, "");
    link->synchronize(*arrival->fence);
    EXPECT_EQ(link->bytes() - counted, 3 * kUnit);
    for (WeightId weight = 0; weight < 3; ++weight) {
      const std::byte* outside = store->outside_ring(weight);
      EXPECT_EQ(outside != nullptr, maps && weight != 1);
      EXPECT_EQ(outside && file->contains(outside), outside != nullptr);
      EXPECT_EQ(std::memcmp(outside ? outside : ring.data() + weight * kUnit, bytes.data() + host[weight].offset,
                            host[weight].bytes),
                0)
          << "weight " << weight;
    }
  }
  const HostSource source{&reader, nullptr, file};
  const auto store = make_in_place_store(*link, places(source), ring.data(), 1);
  made.write(bytes + "more");
  const auto arrival = std::make_shared<Arrival>();
  store->issue({{{0, 0, kUnit}}, {}, arrival});
  EXPECT_NE(arrival->failure.find("was changed"), std::string::npos) << arrival->failure;
  EXPECT_TRUE(arrival->of_archive);
}

/// What it was given is there when its destructor returns: nothing is written after that.
TEST(FileStore, IsDestroyedWithReadsInFlight) {
  constexpr std::uint64_t kUnit = 512ULL * 100;
  constexpr std::size_t kWeights = 4;
  const std::string bytes = pattern(kWeights * kUnit);
  const TemporaryFile made(bytes);
  const auto file = std::make_shared<const File>(made.path());
  for (int slow = 0; slow < static_cast<int>(kWeights); ++slow) {
    FileReader reader(file, std::make_unique<FakeDisk>(file, Fault::is_slow, slow));
    const auto link = make_host_link();
    std::vector<std::byte> ring(kWeights * kUnit);
    const HostSource source{&reader};
    HostPlaces host;
    for (std::size_t i = 0; i < kWeights; ++i) {
      host.push_back(in_file(source, i * kUnit, kUnit));
    }
    auto store = make_in_place_store(*link, host, ring.data(), 2);
    std::vector<ArrivalPtr> arrivals;
    for (std::size_t i = 0; i < kWeights; ++i) {
      arrivals.push_back(std::make_shared<Arrival>());
      store->issue({{{static_cast<WeightId>(i), i * kUnit, kUnit}}, {}, arrivals.back()});
    }
    store.reset();
    for (const ArrivalPtr& arrival : arrivals) {
      EXPECT_TRUE(arrival->issued) << "wrong bytes: they have not come";
    }
    EXPECT_EQ(std::memcmp(ring.data(), bytes.data(), bytes.size()), 0) << "wrong bytes";
  }
}

/// What was prefetched and is not wanted any more may still be on its way into a place that something else gets.
TEST(FileStore, FillsAPlaceInTheOrderOfItsBatches) {
  constexpr std::uint64_t kUnit = 512ULL * 100;
  const std::string bytes = pattern(2 * kUnit);
  const TemporaryFile made(bytes);
  const auto file = std::make_shared<const File>(made.path());
  const std::string held = pattern(kUnit + 1).substr(1);
  for (const bool second_is_in_memory : {false, true}) {
    FileReader reader(file, std::make_unique<FakeDisk>(file, Fault::is_slow, 0));
    const auto link = make_host_link();
    std::vector<std::byte> ring(kUnit);
    const HostSource source{&reader};
    HostPlaces host = {in_file(source, 0, kUnit), in_file(source, kUnit, kUnit)};
    if (second_is_in_memory) {
      host[1] = in_memory(reinterpret_cast<const std::byte*>(held.data()));
    }
    const auto store = make_in_place_store(*link, host, ring.data(), 2);
    for (WeightId weight = 0; weight < 2; ++weight) {
      store->issue({{{weight, 0, kUnit}}, {}, std::make_shared<Arrival>()});
    }
    store->drain();
    link->synchronize(*link->record_arrived());
    const char* expected = second_is_in_memory ? held.data() : bytes.data() + kUnit;
    EXPECT_EQ(std::memcmp(ring.data(), expected, kUnit), 0);
  }
}

/// Of several modules: each weight comes from its own file, and one that has changed fails nobody else.
TEST(FileStore, BringsWeightsOfSeveralFiles) {
  constexpr std::uint64_t kUnit = 512ULL * 100;
  const std::string bytes[] = {pattern(kUnit), std::string(kUnit, 'b')};
  const TemporaryFile made[] = {TemporaryFile(bytes[0]), TemporaryFile(bytes[1])};
  std::vector<std::unique_ptr<FileReader>> readers;
  std::vector<HostSource> sources;
  for (const bool maps : {false, true}) {
    for (const TemporaryFile& one : made) {
      const auto file = std::make_shared<const File>(one.path());
      readers.push_back(std::make_unique<FileReader>(file, make_disk(file, FileReader::kReadsInFlight)));
      sources.push_back({readers.back().get(), nullptr, maps ? file : nullptr});
    }
  }
  const auto link = make_host_link();
  std::vector<std::byte> ring(4 * kUnit);
  HostPlaces host;
  for (const HostSource& source : sources) {
    host.push_back(in_file(source, 0, kUnit));
  }
  const auto store = make_in_place_store(*link, host, ring.data(), 2);
  const auto issue = [&](const std::vector<WeightId>& weights) {
    auto arrival = std::make_shared<Arrival>();
    Batch batch{{}, {}, arrival};
    for (const WeightId weight : weights) {
      batch.fetches.push_back({weight, weight * kUnit, kUnit});
    }
    store->issue(std::move(batch));
    arrival->await_issued();
    return arrival;
  };
  const auto arrival = issue({0, 1, 2, 3});
  ASSERT_EQ(arrival->failure, "");
  link->synchronize(*arrival->fence);
  for (const WeightId weight : {0, 1, 2, 3}) {
    const std::byte* outside = store->outside_ring(weight);
    EXPECT_EQ(std::memcmp(outside ? outside : ring.data() + weight * kUnit, bytes[weight % 2].data(), kUnit), 0);
  }
  made[1].write(bytes[1] + "more");
  for (const WeightId weight : {0, 1, 2, 3}) {
    EXPECT_EQ(issue({weight})->failure.find("was changed") != std::string::npos, weight % 2 == 1) << weight;
  }
}

} // namespace
} // namespace offload::test
