#include <offload/core/promises.h>

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <vector>

#include <offload/bytes.h>

#include "threads.h"

namespace offload::test {
namespace {

constexpr int kDevice = 3;

TEST(Promise, IsOutstandingUntilItIsTaken) {
  Promise first(kDevice);
  Promise second(kDevice);
  first.set(6_MiB);
  second.set(2_MiB);
  EXPECT_EQ(Promise::outstanding(kDevice), 8_MiB);
  EXPECT_EQ(Promise::outstanding(kDevice + 1), 0U);
  const int memory = 0;
  record_taken(kDevice, &memory, 5_MiB);
  EXPECT_EQ(Promise::outstanding(kDevice), 3_MiB);
  record_given_back(kDevice, &memory);
  EXPECT_EQ(Promise::outstanding(kDevice), 8_MiB);
  first.raise_to(1_MiB);
  EXPECT_EQ(Promise::outstanding(kDevice), 8_MiB);
  first.raise_to(7_MiB);
  EXPECT_EQ(Promise::outstanding(kDevice), 9_MiB);
}

TEST(Promise, GoesWithItsModule) {
  {
    Promise promise(kDevice);
    promise.set(1_MiB);
  }
  EXPECT_EQ(Promise::outstanding(kDevice), 0U);
}

TEST(Promise, OfTheHostIsTakenPageByPage) {
  constexpr std::uint64_t kBytes = 4_MiB;
  void* data = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(data, MAP_FAILED);
  madvise(data, kBytes, MADV_NOHUGEPAGE);
  Promise promise(kHost);
  promise.set(kBytes);
  record_taken(kHost, data, kBytes);
  EXPECT_EQ(Promise::outstanding(kHost), kBytes);
  std::fill_n(static_cast<std::byte*>(data), kBytes / 4, std::byte{1});
  EXPECT_EQ(Promise::outstanding(kHost), kBytes / 4 * 3);
  record_given_back(kHost, data);
  munmap(data, kBytes);
}

TEST(Promise, OfManyWhoAskAtOnceIsNoMoreThanThereIs) {
  constexpr std::uint64_t kFree = 10_MiB;
  std::vector<std::unique_ptr<Promise>> promises;
  for (int i = 0; i < 8; ++i) {
    promises.push_back(std::make_unique<Promise>(kDevice));
  }
  in_parallel(8, [&](int thread) {
    for (int i = 0; i < 2000; ++i) {
      promises[thread]->set_by([&](std::uint64_t outstanding) {
        EXPECT_LE(outstanding, kFree);
        return std::min(3_MiB, kFree - outstanding);
      });
    }
  });
  EXPECT_LE(Promise::outstanding(kDevice), kFree);
}

TEST(Promise, AChildOfAForkHasBeenPromisedNothing) {
  Promise promise(kDevice);
  promise.set(6_MiB);
  const pid_t child = fork();
  if (child == 0) {
    _exit(Promise::outstanding(kDevice) == 0 ? 0 : 1);
  }
  int status = -1;
  EXPECT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  EXPECT_EQ(Promise::outstanding(kDevice), 6_MiB) << "to the parent";
}

} // namespace
} // namespace offload::test
