#include <fcntl.h>
#include <gtest/gtest.h>
#include <offload/error.h>
#include <offload/io/file_reader.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <vector>

#include <tests/fake_disk.h>
#include <tests/temporary_file.h>

namespace offload {
namespace {

using test::FakeDisk;
using test::Fault;
using test::folder_where;
using test::From;
using test::pattern;
using test::TemporaryFile;

/// As mincore() knows it.
double resident_share(const File& file) {
  void* mapped = mmap(nullptr, file.size(), PROT_READ, MAP_SHARED, file.descriptor(), 0);
  std::vector<unsigned char> pages((file.size() + 4095) / 4096);
  EXPECT_EQ(mincore(mapped, file.size(), pages.data()), 0);
  munmap(mapped, file.size());
  const auto there = std::count_if(pages.begin(), pages.end(), [](unsigned char page) { return (page & 1) != 0; });
  return static_cast<double>(there) / static_cast<double>(pages.size());
}

/// Evicts the file from the page cache. False where it does not, since files are in memory.
bool evict(const File& file) {
  EXPECT_EQ(fdatasync(file.descriptor()), 0);
  EXPECT_EQ(posix_fadvise(file.descriptor(), 0, 0, POSIX_FADV_DONTNEED), 0);
  return resident_share(file) == 0;
}

std::filesystem::path folder_on_a_disk() {
  return folder_where([](const std::string& path) {
    const File file(path);
    return file.direct_descriptor() >= 0 && evict(file);
  });
}

TEST(File, TellsHowMuchOfItIsCached) {
  const TemporaryFile made(pattern(3'000'000), folder_on_a_disk());
  const File file(made.path());
  EXPECT_EQ(file.cached_share(), 1);
  EXPECT_EQ(file.cached_bytes(5, 2'999'995), 2'999'995U);
  EXPECT_EQ(file.cached_bytes(2'999'000, 5000), 1000U);
  EXPECT_EQ(file.cached_bytes(3'000'000, 1), 0U);
  if (!evict(file)) {
    GTEST_SKIP() << "no folder on a disk: set TMPDIR to one";
  }
  EXPECT_EQ(file.cached_share(), 0);
  constexpr off_t kMiddle = 409'600;
  char byte = 0;
  ASSERT_EQ(pread(file.descriptor(), &byte, 1, kMiddle), 1);
  EXPECT_EQ(file.cached_bytes(0, kMiddle), 0U);
  EXPECT_GE(file.cached_bytes(kMiddle + 1, 5000), 4095U);
}

TEST(File, IsMappedWhereItIsCached) {
  const std::string bytes = pattern(3'000'000);
  const TemporaryFile made(bytes, folder_on_a_disk());
  {
    const File file(made.path());
    const std::byte* mapped = file.mapped_if_cached(5, 2'999'995);
    ASSERT_TRUE(mapped);
    EXPECT_EQ(std::memcmp(mapped, bytes.data() + 5, 2'999'995), 0);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(mapped) % (2 << 20), 5U) << "where huge pages of the file can be mapped";
    EXPECT_TRUE(file.contains(mapped));
    EXPECT_FALSE(file.contains(mapped + 2'999'995));
    EXPECT_FALSE(file.mapped_if_cached(5, 2'999'996)) << "more than there is";
    EXPECT_FALSE(file.mapped_if_cached(~std::uint64_t{0}, 2));
    EXPECT_FALSE(file.mapped_if_cached(0, 0));
  }
  const TemporaryFile nothing("");
  EXPECT_FALSE(File(nothing.path()).mapped_if_cached(0, 1));
  const File file(made.path());
  if (!evict(file)) { // which the system does not with what somebody has mapped and read
    GTEST_SKIP() << "no folder on a disk: set TMPDIR to one";
  }
  EXPECT_FALSE(file.mapped_if_cached(0, 4096));
}

/// Whoever may neither write a file nor owns it is not told: then reading is tried.
TEST(File, OfOthersIsReadAllTheSame) {
  if (geteuid() != 0) {
    GTEST_SKIP() << "only root may become somebody else";
  }
  const std::string bytes = pattern(3'000'000);
  const TemporaryFile made(bytes);
  ASSERT_EQ(seteuid(65534), 0);
  const auto file = std::make_shared<const File>(made.path());
  EXPECT_FALSE(file->cached_bytes(0, 1).has_value());
  EXPECT_EQ(file->cached_share(), 1);
  const std::byte* mapped = file->mapped_if_cached(64, 1'000'000);
  EXPECT_TRUE(mapped && std::memcmp(mapped, bytes.data() + 64, 1'000'000) == 0);
  std::string read(bytes.size(), '?');
  FileReader reader(file, make_disk(file, FileReader::kReadsInFlight));
  reader.read_all(reinterpret_cast<std::byte*>(read.data()), 0, read.size());
  EXPECT_TRUE(read == bytes);
  ASSERT_EQ(seteuid(0), 0);
}

TEST(FileReader, LeavesThePageCacheAsItWas) {
  const std::string bytes = pattern(3'000'000);
  const TemporaryFile made(bytes, folder_on_a_disk());
  const auto file = std::make_shared<const File>(made.path());
  if (!evict(*file) || file->direct_descriptor() < 0) {
    GTEST_SKIP() << "no folder on a disk that is read past the page cache: set TMPDIR to one";
  }
  for (const Reads reads : {Reads::ring_or_threads, Reads::threads}) {
    FileReader reader(file, make_disk(file, FileReader::kReadsInFlight, reads));
    std::string read(bytes.size(), '?');
    reader.read_all(reinterpret_cast<std::byte*>(read.data()), 0, read.size());
    EXPECT_TRUE(read == bytes);
    EXPECT_EQ(resident_share(*file), 0);
  }
}

TEST(FileReader, ReadsAnyRangeCachedOrNot) {
  const std::string bytes = pattern(3'000'000);
  const TemporaryFile made(bytes);
  const auto file = std::make_shared<const File>(made.path());
  for (const Reads reads : {Reads::ring_or_threads, Reads::threads}) {
    FileReader reader(file, make_disk(file, FileReader::kReadsInFlight, reads));
    FileReader uncached(file, std::make_unique<FakeDisk>(file, Fault::none, 0, From::disk, reads));
    for (const auto& [offset, count] : std::initializer_list<std::pair<std::size_t, std::size_t>>{
             {0, 1}, {0, 4096}, {1, 4096}, {4095, 2}, {777, 1'000'000}, {0, 3'000'000}, {2'999'999, 1}, {64, 0}}) {
      for (FileReader* each : {&reader, &uncached}) {
        std::string read(count, '?');
        each->read_all(reinterpret_cast<std::byte*>(read.data()), offset, count);
        EXPECT_TRUE(read == bytes.substr(offset, count)) << count << " at " << offset;
      }
    }
  }
}

TEST(FileReader, IsRightOrAnErrorWhicheverReadGoesWrong) {
  const std::string bytes = pattern(4'500'000);
  const TemporaryFile made(bytes);
  const auto file = std::make_shared<const File>(made.path());
  const auto look_at = [&](Fault fault, int which, From from) {
    auto disk = std::make_unique<FakeDisk>(file, fault, which, from);
    FakeDisk* fake = disk.get();
    FileReader reader(file, std::move(disk));
    const auto read = [&] {
      std::string got(bytes.size(), '?');
      reader.read_all(reinterpret_cast<std::byte*>(got.data()), 0, got.size());
      return got == bytes;
    };
    if (fault == Fault::fails || (fault == Fault::ends && from == From::disk)) {
      EXPECT_THROW(read(), ArchiveError);
    } else {
      EXPECT_TRUE(read());
    }
    EXPECT_GT(fake->reads, which);
    for (int i = 0; i < 3; ++i) { // no buffer was lost
      EXPECT_TRUE(read());
    }
  };
  for (const From from : {From::disk, From::cache}) {
    for (const Fault fault :
         {Fault::fails, Fault::comes_short, Fault::ends, Fault::is_slow, Fault::is_interrupted, Fault::is_refused}) {
      for (int which = 0; which < 5; ++which) {
        SCOPED_TRACE(testing::Message() << "fault " << static_cast<int>(fault) << " of read " << which << ", from "
                                        << (from == From::disk ? "the disk" : "the page cache"));
        look_at(fault, which, from);
      }
    }
  }
}

TEST(FileReader, ReadsMoreThanItHasBuffersFor) {
  constexpr std::size_t kMany = std::size_t{5} * FileReader::kReadsInFlight;
  const std::string bytes = pattern(kMany * 10'000);
  const TemporaryFile made(bytes);
  const auto file = std::make_shared<const File>(made.path());
  std::string read(bytes.size(), '?');
  std::atomic<std::size_t> failed = 0;
  {
    FileReader reader(file, std::make_unique<FakeDisk>(file, Fault::is_slow, 0));
    for (std::size_t i = 0; i < kMany; ++i) {
      reader.read(reinterpret_cast<std::byte*>(read.data()) + i * 10'000, i * 10'000, 10'000,
                  [&](const std::exception_ptr& failure) { failed += failure ? 1 : 0; });
    }
  } // waits for what is under way
  EXPECT_EQ(failed, 0U);
  EXPECT_TRUE(read == bytes) << "wrong bytes";
}

TEST(FileReader, TellsAFileThatWasChanged) {
  const std::string bytes = pattern(100'000);
  const TemporaryFile made(bytes);
  const auto file = std::make_shared<const File>(made.path());
  FileReader reader(file, make_disk(file, FileReader::kReadsInFlight));
  std::byte to[100];
  const auto said = [&](std::uint64_t offset) -> std::string {
    try {
      reader.read_all(to, offset, sizeof to);
      return "";
    } catch (const ArchiveError& error) {
      return error.what();
    }
  };
  EXPECT_EQ(said(0), "");
  std::filesystem::resize_file(made.path(), 5000);
  EXPECT_NE(said(0).find("it had 100000 bytes and has 5000"), std::string::npos);
  EXPECT_NE(said(90'000).find("it had 100000 bytes and has 5000"), std::string::npos);
  std::filesystem::resize_file(made.path(), 100'000);
  EXPECT_NE(said(0).find("was changed"), std::string::npos);
}

TEST(FileReader, ReadsTheFileThatWasOpenedAfterItIsGone) {
  const TemporaryFile made("what was opened");
  const auto file = std::make_shared<const File>(made.path());
  FileReader reader(file, make_disk(file, FileReader::kReadsInFlight));
  std::filesystem::remove(made.path());
  made.write("another one now");
  std::string read(15, '?');
  reader.read_all(reinterpret_cast<std::byte*>(read.data()), 0, read.size());
  EXPECT_EQ(read, "what was opened");
}

} // namespace
} // namespace offload
