#include <gtest/gtest.h>
#include <offload/device/host_link.h>
#include <offload/error.h>
#include <offload/feed/host_fill.h>
#include <offload/feed/stores.h>
#include <offload/ring/streamer.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <tests/fake_disk.h>
#include <tests/temporary_file.h>
#include <tests/threads.h>
#include <tests/weight_tables.h>

namespace offload {
namespace {

using test::FakeDisk;
using test::Fault;
using test::From;
using test::pattern;

constexpr std::uint64_t kPart = FileReader::kMostBytes + 100'000; // two reads
constexpr std::uint64_t kGap = 24;                                // what alignment leaves between places
constexpr int kParts = 4;

/// Parts of a file with places in memory, and somebody who fills them.
class HostFillTest : public testing::Test {
 protected:
  std::unique_ptr<HostFill> fill(Fault fault, int which, HostFill::Callbacks callbacks = {}, int threads = 2) {
    std::fill(memory_.begin(), memory_.end(), std::byte{0});
    auto disk = std::make_unique<FakeDisk>(file_, fault, which, from_);
    disk_ = disk.get();
    std::vector<HostFill::Part> parts;
    for (int i = 0; i < kParts; ++i) {
      parts.push_back({memory_.data() + i * (kPart + kGap), 7 + i * kPart, kPart});
    }
    reader_ = std::make_shared<FileReader>(file_, std::move(disk));
    return std::make_unique<HostFill>(reader_, parts, std::move(callbacks), threads);
  }

  const std::byte* end_of(int part) const { return memory_.data() + part * (kPart + kGap) + kPart; }
  bool is_there(int part) const {
    return std::memcmp(memory_.data() + part * (kPart + kGap), bytes_.data() + 7 + part * kPart, kPart) == 0;
  }
  void expect_all(HostFill& fill) {
    for (int part = 0; part < kParts; ++part) {
      fill.await_bytes(end_of(part));
      EXPECT_TRUE(is_there(part)) << "wrong bytes of part " << part;
    }
  }

  const std::string bytes_ = pattern(7 + kParts * kPart);
  const test::TemporaryFile made_ = test::TemporaryFile(bytes_);
  const std::shared_ptr<const File> file_ = std::make_shared<const File>(made_.path());
  std::vector<std::byte> memory_ = std::vector<std::byte>(kParts * (kPart + kGap));
  From from_ = From::disk;             // of the next fill
  std::shared_ptr<FileReader> reader_; // of the last fill
  FakeDisk* disk_ = nullptr;           // of that
};

TEST_F(HostFillTest, IsRightOrAnErrorOnceWhicheverReadGoesWrong) {
  for (const Fault fault : {Fault::none, Fault::fails, Fault::comes_short, Fault::ends, Fault::is_slow}) {
    for (int read = 0; read < 4 * kParts; ++read) {
      const int which = read % (2 * kParts);
      from_ = read == which ? From::disk : From::cache;
      const auto filling = fill(fault, which);
      int failures = 0;
      for (int attempt = 0; attempt < 3; ++attempt) {
        try {
          filling->await_bytes(end_of(kParts - 1));
          break;
        } catch (const ArchiveError& error) {
          ++failures;
          filling->retry();
        }
      }
      const bool fails = fault == Fault::fails || (fault == Fault::ends && from_ == From::disk);
      EXPECT_EQ(failures, fails ? 1 : 0) << which;
      expect_all(*filling);
    }
  }
}

TEST_F(HostFillTest, GivesWhatIsThereBeforeTheRestHasCome) {
  const auto filling = fill(Fault::is_held, 2, {}, 1); // the first read of the second part
  filling->await_bytes(end_of(0));
  EXPECT_TRUE(is_there(0)) << "wrong bytes";
  std::atomic<bool> came = false;
  std::thread waits([&] {
    filling->await_bytes(end_of(1));
    came = true;
    EXPECT_TRUE(is_there(1)) << "wrong bytes";
  });
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  EXPECT_FALSE(came);
  disk_->release();
  waits.join();
  expect_all(*filling);
}

TEST_F(HostFillTest, GivesNothingBeforeItIsPrepared) {
  std::atomic<bool> prepared = false;
  int attempts = 0;
  HostFill::Callbacks callbacks;
  callbacks.prepare = [&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(30));
    if (++attempts == 1) {
      throw Error("page-locking was refused");
    }
    prepared = true;
  };
  const auto filling = fill(Fault::none, 0, std::move(callbacks));
  try {
    filling->await_bytes(end_of(0));
    FAIL() << "the refusal was not told";
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "page-locking was refused");
  }
  EXPECT_THROW(filling->await_bytes(end_of(0)), Error) << "nobody has asked for another attempt";
  EXPECT_EQ(attempts, 1);
  filling->retry();
  filling->await_bytes(end_of(0));
  EXPECT_TRUE(prepared);
  expect_all(*filling);
}

TEST_F(HostFillTest, TellsWhatHasComeAndWhatACallbackThrows) {
  for (const bool is_exception : {true, false}) {
    std::atomic<std::uint64_t> come = 0;
    bool thrown = false;
    HostFill::Callbacks callbacks;
    callbacks.on_progress = [&](std::uint64_t bytes) {
      come += bytes;
      if (!std::exchange(thrown, true)) {
        disk_->await_held(); // no read is begun after a failure
        if (is_exception) {
          throw std::runtime_error("enough");
        }
        throw 1; // NOLINT(bugprone-std-exception-baseclass): the callback is the user's, and may throw anything
      }
    };
    const auto filling = fill(Fault::is_held, 2 * kParts - 1, std::move(callbacks));
    EXPECT_THROW(filling->await_bytes(end_of(kParts - 1)), std::exception);
    filling->retry();
    disk_->release();
    expect_all(*filling);
    while (come < kParts * kPart) {
      std::this_thread::yield();
    }
    EXPECT_EQ(come, kParts * kPart);
  }
}

TEST_F(HostFillTest, WhatIsThrownWhenAllHasComeIsToldToWhoRetries) {
  std::uint64_t come = 0;
  HostFill::Callbacks callbacks;
  callbacks.on_progress = [&](std::uint64_t bytes) {
    come += bytes;
    if (come == kParts * kPart) {
      throw std::runtime_error("enough");
    }
  };
  const auto filling = fill(Fault::none, 0, callbacks);
  expect_all(*filling);
  std::string told;
  for (int attempt = 0; attempt < 5000 && told.empty(); ++attempt) {
    try {
      filling->retry();
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    } catch (const std::runtime_error& error) {
      told = error.what();
    }
  }
  EXPECT_EQ(told, "enough");
  EXPECT_NO_THROW(filling->retry()) << "it has been told";
  expect_all(*filling);
}

TEST_F(HostFillTest, WhatIsThrownIsToldToWhoRetriesAlsoAfterAReportThatThrewNothing) {
  std::atomic<std::uint64_t> come = 0;
  HostFill::Callbacks callbacks;
  callbacks.on_progress = [&](std::uint64_t bytes) {
    if (come.fetch_add(bytes) == 0) {
      disk_->release(); // the last read: none is begun after a failure
      throw std::runtime_error("enough");
    }
  };
  const auto filling = fill(Fault::is_held, 2 * kParts - 1, callbacks);
  while (come < kParts * kPart) {
    std::this_thread::yield();
  }
  EXPECT_THROW(filling->retry(), std::runtime_error);
  EXPECT_NO_THROW(filling->retry()) << "it has been told";
  expect_all(*filling);
}

/// Nor does it keep those waiting who ask a streamer, or give weights back.
TEST_F(HostFillTest, ALeaseThatWaitsForTheDiskKeepsNoOtherLaneWaiting) {
  const auto filling = fill(Fault::is_held, 4, {}, 1); // the first read of the third part
  filling->await_bytes(end_of(1));
  const auto link = make_host_link();
  constexpr std::uint64_t kPlace = (kPart + 511) / 512 * 512;
  std::vector<std::byte> ring(kParts * kPlace);
  std::vector<std::byte> padding(kPlace);
  const HostSource source{nullptr, filling.get()};
  HostPlaces host;
  for (int part = 0; part < kParts; ++part) {
    host.push_back(in_memory(end_of(part) - kPart, /*direct=*/false, &source));
  }
  host.back() = in_memory(padding.data()); // nothing is read beyond the last part
  const auto store = make_direct_store(*link, host, ring.data());
  StreamerConfig config;
  config.link = link.get();
  config.store = store.get();
  config.ring = ring.data();
  config.ring_bytes = ring.size();
  config.batch_bytes = kPlace;
  config.lanes = 2;
  config.weights = test::shared_table(std::vector<std::uint64_t>(kParts, kPlace));
  Streamer streamer(config);
  streamer.acquire(0, {0});
  streamer.acquire(0, {0});
  test::BlockedThread waits([&] { streamer.acquire(1, {2}); });
  waits.await_blocked();
  test::BlockedThread others([&] {
    streamer.release(0, {0});
    streamer.acquire(0, {0});
    EXPECT_EQ(streamer.counts().misses, 2U);
    EXPECT_EQ(streamer.counts().bytes_used, 2 * kPlace);
  });
  others.await_blocked();
  EXPECT_TRUE(others.done()) << "they wait for the disk";
  EXPECT_FALSE(waits.done());
  disk_->release();
  waits.join();
  others.join();
  streamer.release(0, {0});
  streamer.release(0, {0});
  streamer.release(1, {2});
}

TEST_F(HostFillTest, ACancelledOneKeepsNobodyWaiting) {
  const auto filling = fill(Fault::is_held, 2);
  std::thread waits([&] { EXPECT_THROW(filling->await_bytes(end_of(kParts - 1)), Error); });
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  filling->cancel();
  waits.join();
  disk_->release();
}

/// Somebody else may have the reader, too.
TEST_F(HostFillTest, NothingComesAfterItsEnd) {
  auto filling = fill(Fault::is_held, 2);
  const std::shared_ptr<FileReader> reader = reader_;
  disk_->await_held();
  std::thread ends([&] {
    filling.reset();
    std::fill(memory_.begin(), memory_.end(), std::byte{0xAA});
  });
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  disk_->release();
  ends.join();
  EXPECT_EQ(std::count(memory_.begin(), memory_.end(), std::byte{0xAA}), std::ssize(memory_)) << "wrong bytes";
}

TEST_F(HostFillTest, ManyMayWaitAndAFailureIsToldToThoseWhoDo) {
  for (const Fault fault : {Fault::none, Fault::fails}) {
    const auto filling = fill(fault, 3);
    std::atomic<int> failures = 0;
    std::vector<std::thread> waiting;
    for (int i = 0; i < 8; ++i) {
      waiting.emplace_back([&] {
        for (int part = 0; part < kParts; ++part) {
          try {
            filling->await_bytes(end_of(part));
            EXPECT_TRUE(is_there(part)) << "wrong bytes";
          } catch (const ArchiveError&) {
            ++failures;
            filling->retry();
            --part; // again
          }
        }
      });
    }
    for (std::thread& thread : waiting) {
      thread.join();
    }
    EXPECT_EQ(failures > 0, fault == Fault::fails);
  }
}

TEST_F(HostFillTest, EndsWithReadsUnderWay) {
  for (int which = 0; which < 2 * kParts; ++which) {
    fill(Fault::is_slow, which);
  }
}

/// Every store waits for the bytes that it brings to the ring.
TEST_F(HostFillTest, StoresWaitForWhatTheyRead) {
  struct Kind {
    const char* name;
    int buffers; // of a staged store
    bool direct;
  };
  for (const Kind& kind : {Kind{"direct", 0, true}, Kind{"staged", 2, false}, Kind{"staged, page-locked", 2, true},
                           Kind{"in place", 0, false}}) {
    for (const Fault fault : {Fault::is_slow, Fault::fails}) {
      SCOPED_TRACE(kind.name);
      const auto filling = fill(fault, 2 * kParts - 1);
      const auto link = make_host_link();
      std::vector<std::byte> ring(kPart);
      std::vector<std::byte> staging(kind.buffers * (kPart / 2));
      const HostSource source{nullptr, filling.get()};
      const HostPlaces host = {in_memory(end_of(kParts - 1) - kPart, kind.direct, &source)};
      const auto store = kind.buffers > 0
                             ? make_staged_store(*link, host, ring.data(), {staging.data(), kPart / 2, kind.buffers}, 2)
                         : kind.direct ? make_direct_store(*link, host, ring.data())
                                       : make_in_place_store(*link, host, ring.data(), 2);
      for (int attempt = 0; attempt < 2; ++attempt) {
        filling->retry();
        const auto arrival = std::make_shared<Arrival>();
        store->issue({{{0, 0, kPart}}, {}, arrival});
        store->drain();
        ASSERT_TRUE(arrival->issued);
        const bool fails = fault == Fault::fails && attempt == 0;
        EXPECT_EQ(arrival->failure.empty(), !fails) << arrival->failure;
        EXPECT_EQ(arrival->of_archive, fails);
        if (!fails) {
          link->synchronize(*arrival->fence);
          EXPECT_EQ(std::memcmp(ring.data(), bytes_.data() + 7 + (kParts - 1) * kPart, kPart), 0) << "wrong bytes";
        }
      }
    }
  }
}

} // namespace
} // namespace offload
