// Bytes of a file that are read where the page cache has them, and what happens to them when the file is written.

#include <fcntl.h>
#include <gtest/gtest.h>
#include <offload/bytes.h>
#include <offload/device/host_link.h>
#include <offload/feed/stores.h>
#include <offload/io/cache_window.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <thread>
#include <vector>

#include <tests/fake_disk.h>
#include <tests/locked_bytes.h>
#include <tests/temporary_file.h>

namespace offload {
namespace {

using test::folder_where;
using test::locked_bytes;
using test::pattern;
using test::system_allows_windows;
using test::TemporaryFile;
using namespace std::chrono_literals;

class Window : public testing::Test {
 protected:
  static constexpr std::uint64_t kRange = 300'032; // ranges share pages with their neighbours
  static constexpr std::uint64_t kRanges = 12;

  void SetUp() override {
    ASSERT_TRUE(system_allows_windows(made_.path()))
        << "no folder for these tests: set TMPDIR to one on ext4, xfs, btrfs or tmpfs, and let memory be locked "
           "(ulimit -l)";
    ring_.resize(kRanges * kRange);
    window_ = CacheWindow::open(file_, ring_.data());
    ASSERT_TRUE(window_);
  }

  const std::byte* map(std::uint64_t range, std::uint64_t place) {
    return window_->map(place * kRange, kRange, range * kRange + kShift, kRange);
  }
  bool is_right(const std::byte* at, std::uint64_t range) const {
    return std::memcmp(at, bytes_.data() + range * kRange + kShift, kRange) == 0;
  }

  static constexpr std::uint64_t kShift = 192;
  const std::string bytes_ = pattern(kRanges * kRange + kShift + 77);
  const TemporaryFile made_{bytes_, folder_where(system_allows_windows)};
  const std::shared_ptr<const File> file_ = std::make_shared<const File>(made_.path());
  std::vector<std::byte> ring_;
  std::unique_ptr<CacheWindow> window_;
};

TEST_F(Window, ShowsTheBytesOfTheFileAsLongAsTheirPlaceIsTheirs) {
  std::vector<const std::byte*> at;
  for (std::uint64_t i = 0; i < kRanges; ++i) {
    at.push_back(map(i, i));
    ASSERT_TRUE(at.back());
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(at.back()) % 64, kShift % 64);
  }
  EXPECT_GE(locked_bytes(), kRanges * kRange);
  for (std::uint64_t i = 0; i < kRanges; i += 2) {
    window_->take(i * kRange + 5, 10);
  }
  EXPECT_LE(locked_bytes(), kRanges / 2 * (kRange + 2ULL * 4096));
  for (std::uint64_t i = 1; i < kRanges; i += 2) {
    EXPECT_TRUE(is_right(at[i], i)) << i;
  }
  EXPECT_EQ(map(3, 0), at[3]) << "it is there, and needs another place only";
  window_->take(3 * kRange, kRange);
  EXPECT_TRUE(is_right(at[3], 3)) << "its former place is nothing to it";
  for (std::uint64_t i = 0; i < kRanges; ++i) {
    window_->take(i * kRange, kRange);
  }
  EXPECT_EQ(locked_bytes(), 0U);
}

TEST_F(Window, GivesTheMemoryOfThePlaceBack) {
  const auto begin = reinterpret_cast<std::uintptr_t>(ring_.data());
  std::byte* page = ring_.data() + (align_up(begin, 4096) - begin);
  *page = std::byte{1};
  ASSERT_TRUE(map(0, 0));
  EXPECT_EQ(*page, std::byte{0});
}

TEST_F(Window, TakesWhatIsNotCachedForTheDisk) {
  ASSERT_EQ(fdatasync(file_->descriptor()), 0);
  ASSERT_EQ(posix_fadvise(file_->descriptor(), 0, 0, POSIX_FADV_DONTNEED), 0);
  if (file_->cached_share() > 0) {
    GTEST_SKIP() << "files are in memory here";
  }
  EXPECT_FALSE(map(0, 0));
  EXPECT_FALSE(CacheWindow::bytes_per_us(file_));
  std::string read(bytes_.size(), '?');
  std::ifstream(made_.path(), std::ios::binary).read(read.data(), static_cast<std::streamsize>(read.size()));
  EXPECT_TRUE(map(0, 0)) << "now it is cached";
  EXPECT_GT(CacheWindow::bytes_per_us(file_).value_or(0), 0);
}

TEST_F(Window, OfAFileThatIsCutHasCopiesOfWhatWasMapped) {
  std::vector<const std::byte*> at;
  for (std::uint64_t i = 0; i < kRanges - 2; ++i) {
    at.push_back(map(i, i));
    ASSERT_TRUE(at.back());
  }
  std::filesystem::resize_file(made_.path(), 5000);
  for (std::uint64_t i = 0; i < kRanges - 2; ++i) {
    EXPECT_TRUE(is_right(at[i], i)) << i;
  }
  EXPECT_FALSE(map(kRanges - 1, kRanges - 1)) << "nothing more is mapped";
  EXPECT_EQ(map(2, 7), at[2]) << "what is there still is there";
  for (std::uint64_t i = 0; i < kRanges; ++i) {
    window_->take(i * kRange, kRange);
  }
  EXPECT_EQ(locked_bytes(), 0U);
}

TEST_F(Window, OfAFileThatIsOverwrittenHasWhatItHad) {
  const std::byte* at = map(1, 1);
  ASSERT_TRUE(at);
  std::fstream(made_.path(), std::ios::binary | std::ios::in | std::ios::out)
      .write(std::string(600'000, '!').data(), 600'000);
  EXPECT_TRUE(is_right(at, 1));
  EXPECT_FALSE(CacheWindow::open(file_, ring_.data())) << "the file is no longer what it was when it was opened";
}

/// Those who read see the pages of the file or those of the copy; anything else would be a signal.
TEST_F(Window, MayBeReadWhileTheFileIsCut) {
  for (int round = 0; round < 40; ++round) {
    const TemporaryFile made(bytes_);
    const auto file = std::make_shared<const File>(made.path());
    window_ = CacheWindow::open(file, ring_.data());
    ASSERT_TRUE(window_);
    std::vector<const std::byte*> at;
    for (std::uint64_t i = 0; i < kRanges; ++i) {
      at.push_back(map(i, i));
      ASSERT_TRUE(at.back());
    }
    std::atomic<bool> over = false;
    std::atomic<int> wrong = 0;
    std::vector<std::thread> readers;
    for (std::uint64_t thread = 0; thread < 2; ++thread) {
      readers.emplace_back([&, thread] {
        for (std::uint64_t i = thread; !over; i = (i + 1) % kRanges) {
          wrong += is_right(at[i], i) ? 0 : 1;
        }
      });
    }
    std::this_thread::sleep_for(std::chrono::microseconds(round * 50));
    std::filesystem::resize_file(made.path(), 0);
    std::this_thread::sleep_for(1ms);
    over = true;
    for (std::thread& reader : readers) {
      reader.join();
    }
    EXPECT_EQ(wrong, 0);
  }
}

/// Places are given and taken while somebody wants to write.
TEST_F(Window, MayBeMovedWhileTheFileIsCut) {
  for (int round = 0; round < 40; ++round) {
    const TemporaryFile made(bytes_);
    const auto file = std::make_shared<const File>(made.path());
    window_ = CacheWindow::open(file, ring_.data());
    ASSERT_TRUE(window_);
    std::thread cutter([&] {
      std::this_thread::sleep_for(std::chrono::microseconds(round * 40));
      std::filesystem::resize_file(made.path(), 4096);
    });
    int refused = 0;
    for (std::uint64_t i = 0; refused < 3 && i < 1'000'000; ++i) {
      const std::byte* at = map(i % kRanges, i % 3);
      if (at) {
        ASSERT_TRUE(is_right(at, i % kRanges));
      } else {
        ++refused;
      }
    }
    cutter.join();
    EXPECT_EQ(refused, 3) << "the file was cut, and mapped all the same";
  }
}

TEST_F(Window, LeavesWhatIsNotAlignedToCopies) {
  EXPECT_FALSE(window_->map(0, kRange, kShift + 8, kRange));
  EXPECT_TRUE(window_->map(0, kRange, kShift + 64, kRange));
}

TEST_F(Window, IsNotOpenedOnAFileThatSomebodyWrites) {
  window_.reset();
  const int writer = open(made_.path().c_str(), O_RDWR);
  EXPECT_FALSE(CacheWindow::open(file_, ring_.data()));
  close(writer);
  EXPECT_TRUE(CacheWindow::open(file_, ring_.data()));
}

TEST_F(Window, LetsOthersWriteOnceItIsGone) {
  window_.reset();
  const int writer = open(made_.path().c_str(), O_RDWR | O_NONBLOCK); // would be told to wait
  EXPECT_GE(writer, 0) << std::strerror(errno);
  close(writer);
}

/// As far as RLIMIT_MEMLOCK goes, which for most users is not far: then bytes are copied.
TEST_F(Window, ThatMayNotLockMemoryLeavesItToCopies) {
  if (geteuid() != 0) {
    GTEST_SKIP() << "who is root may lock any memory, and become somebody who may not";
  }
  window_.reset();
  rlimit before{};
  ASSERT_EQ(getrlimit(RLIMIT_MEMLOCK, &before), 0);
  const rlimit little{2 * kRange, before.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_MEMLOCK, &little), 0);
  ASSERT_EQ(chown(made_.path().c_str(), 65534, 65534), 0);
  ASSERT_EQ(seteuid(65534), 0);
  window_ = CacheWindow::open(file_, ring_.data());
  if (window_) {
    EXPECT_TRUE(map(0, 0));
    EXPECT_FALSE(map(1, 1) && map(2, 2));
    EXPECT_TRUE(is_right(map(0, 0), 0)) << "what is there still is there";
  }
  window_.reset();
  ASSERT_EQ(seteuid(0), 0);
  ASSERT_EQ(setrlimit(RLIMIT_MEMLOCK, &before), 0);
}

TEST_F(Window, OfAStoreLeavesOutOfTheRingWhatIsLargeAndCached) {
  const auto link = make_host_link();
  FileReader reader(file_, make_disk(file_, FileReader::kReadsInFlight));
  constexpr std::uint64_t kSmall = 4096;
  HostPlaces host = {
      {nullptr, kShift, kRange}, {nullptr, kShift + kRange, kSmall}, {nullptr, kShift + 2 * kRange, kRange}};
  StagedSources sources;
  sources.reader = &reader;
  sources.window = std::move(window_);
  const auto store =
      make_staged_store(*link, host, std::vector<bool>(3), ring_.data(), {nullptr, 0, 0}, 1, std::move(sources));
  const auto bring = [&](WeightId weight, std::uint64_t place) {
    const auto arrival = std::make_shared<Arrival>();
    store->issue({{{weight, place, host[weight].bytes}}, {}, arrival});
    store->wait_issued(*arrival);
    EXPECT_EQ(arrival->failure, "");
    link->synchronize(*arrival->fence);
    const std::byte* outside = store->outside_ring(weight);
    EXPECT_EQ(
        std::memcmp(outside ? outside : ring_.data() + place, bytes_.data() + host[weight].offset, host[weight].bytes),
        0);
    return outside != nullptr;
  };
  EXPECT_TRUE(bring(0, 0));
  EXPECT_TRUE(bring(2, kRange));
  EXPECT_FALSE(bring(1, 0));
  EXPECT_EQ(link->bytes(), 2 * kRange + kSmall) << "all are counted";
  EXPECT_LE(locked_bytes(), kRange + 2ULL * 4096) << "the place of the first was given to another";
  std::filesystem::last_write_time(made_.path(), std::filesystem::last_write_time(made_.path()) + 1s);
  const auto arrival = std::make_shared<Arrival>();
  store->issue({{{0, 2 * kRange, kRange}}, {}, arrival});
  store->wait_issued(*arrival);
  EXPECT_TRUE(arrival->of_archive) << "a file of another time was used";
}

} // namespace
} // namespace offload
