#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <utility>
#include <vector>

#include <offload/device/host_loans.h>

#include "threads.h"

namespace offload::test {
namespace {

class HostLoansTest : public testing::Test {
 protected:
  /// Memory of the test's own, in which what is freed and not freed shows.
  HostLoans::Source source() {
    return {[this](std::uint64_t bytes) -> void* {
              if (bytes > most_) {
                return nullptr;
              }
              const std::lock_guard lock(mutex_);
              ++allocations_;
              auto memory = std::make_unique<std::byte[]>(bytes);
              void* data = memory.get();
              allocated_[data] = std::move(memory);
              return data;
            },
            [this](void* data) {
              const std::lock_guard lock(mutex_);
              EXPECT_EQ(allocated_.erase(data), 1U);
            }};
  }

  std::uint64_t most_ = 1U << 20;
  int allocations_ = 0;
  std::mutex mutex_;
  std::map<void*, std::unique_ptr<std::byte[]>> allocated_;
};

TEST_F(HostLoansTest, KnowsWhatIsLent) {
  HostLoans loans(source());
  auto* a = static_cast<std::byte*>(loans.lend(100, 512));
  auto* b = static_cast<std::byte*>(loans.lend(100, 1024));
  EXPECT_TRUE(loans.contains(a) && loans.contains(a + 99) && loans.contains(b));
  EXPECT_FALSE(loans.contains(a + 100) || loans.contains(a - 1));
  EXPECT_EQ(loans.take_back(b), 1024U);
  EXPECT_FALSE(loans.contains(b));
  EXPECT_TRUE(loans.contains(a));
  EXPECT_EQ(loans.take_back(a), 512U);
  EXPECT_FALSE(loans.contains(a));
}

TEST_F(HostLoansTest, LendsAgainWithinACall) {
  HostLoans loans(source());
  void* large = loans.lend(1000, 0);
  void* small = loans.lend(300, 1024);
  loans.take_back(large);
  loans.take_back(small);
  EXPECT_EQ(loans.lend(200, 0), small) << "the smallest that is large enough";
  EXPECT_EQ(loans.lend(500, 512), large);
  EXPECT_EQ(allocations_, 2);
  loans.take_back(small);
  loans.free_returned();
  EXPECT_EQ(allocated_.count(small), 0U) << "the call has ended";
  EXPECT_EQ(allocated_.count(large), 1U) << "it is still lent";
}

TEST_F(HostLoansTest, LendsNothingMoreThanTwiceAsLarge) {
  HostLoans loans(source());
  void* large = loans.lend(1000, 0);
  loans.take_back(large);
  EXPECT_NE(loans.lend(499, 0), large);
  EXPECT_EQ(loans.lend(500, 512), large);
}

TEST_F(HostLoansTest, HasNothingWhereTheHostHasNothing) {
  HostLoans loans(source());
  EXPECT_EQ(loans.lend(most_ + 1, 0), nullptr);
  EXPECT_FALSE(loans.contains(nullptr));
}

TEST_F(HostLoansTest, FreesAllWhenItEnds) {
  {
    HostLoans loans(source());
    loans.lend(100, 0);
    loans.take_back(loans.lend(100, 512));
    EXPECT_EQ(allocated_.size(), 2U);
  }
  EXPECT_TRUE(allocated_.empty());
}

TEST_F(HostLoansTest, ServesThreadsBesideEachOther) {
  HostLoans loans(source());
  std::atomic<int> wrong = 0;
  in_parallel(4, [&](int thread) {
    std::mt19937 random(static_cast<unsigned>(thread));
    for (std::uint64_t i = 0; i < 500; ++i) {
      const std::uint64_t bytes = 1 + random() % 1000;
      const std::uint64_t offset = 4 * i + static_cast<unsigned>(thread);
      void* data = loans.lend(bytes, offset);
      std::memset(data, thread, bytes);
      wrong += loans.contains(data) ? 0 : 1;
      wrong += static_cast<const unsigned char*>(data)[bytes - 1] == thread ? 0 : 1;
      wrong += loans.take_back(data) == offset ? 0 : 1;
    }
  });
  EXPECT_EQ(wrong, 0);
}

} // namespace
} // namespace offload::test
