#include <gtest/gtest.h>

#include <cstring>
#include <map>
#include <random>
#include <thread>
#include <vector>

#include <offload/bytes.h>
#include <offload/device/lane_gate.h>
#include <offload/device/lane_memory.h>
#include <offload/device/memory.h>

#include "threads.h"

namespace offload::test {
namespace {

constexpr std::uint64_t kPiece = kDeviceGranularity;

/// Pages of a device that has `device` bytes, at addresses that nobody reads.
class FakePages final : public Pages {
 public:
  explicit FakePages(std::uint64_t device) : device_(device), begin_(new std::byte[kAddresses]) {}
  std::byte* data() const override { return begin_.get(); }
  std::uint64_t addresses() const override { return kAddresses; }
  std::uint64_t bytes() const override { return bytes_; }
  bool grow(std::uint64_t bytes) override {
    if (bytes > device_) {
      return false;
    }
    bytes_ = std::max(bytes_, bytes);
    return true;
  }
  void shrink(std::uint64_t bytes) override { bytes_ = std::min(bytes_, align_up(bytes, kPiece)); }

 private:
  static constexpr std::uint64_t kAddresses = 64 * kPiece;
  const std::uint64_t device_;
  const std::unique_ptr<std::byte[]> begin_;
  std::uint64_t bytes_ = 0;
};

class LaneMemoryTest : public testing::Test {
 protected:
  LaneMemory::Callbacks callbacks() {
    LaneMemory::Callbacks callbacks;
    callbacks.may_hold = [this](std::uint64_t bytes) { return bytes <= budget_; };
    callbacks.make_free = [this] { ++made_free_; };
    return callbacks;
  }

  HostLoans::Source host() {
    return {[this](std::uint64_t bytes) -> void* {
              if (bytes > host_) {
                return nullptr;
              }
              ++loans_;
              return new std::byte[bytes];
            },
            [this](void* data) {
              --loans_;
              delete[] static_cast<std::byte*>(data);
            }};
  }

  static constexpr auto kStop = LaneMemory::Overflow::stop;
  static constexpr auto kLend = LaneMemory::Overflow::lend;

  std::uint64_t budget_ = 8 * kPiece;
  std::uint64_t host_ = 64 * kPiece;
  int made_free_ = 0;
  int loans_ = 0;
  LaneMemory memory_{std::make_unique<FakePages>(16 * kPiece), callbacks(), host()};
};

TEST_F(LaneMemoryTest, TakesPagesAsCallsNeedThemAndKeepsThem) {
  memory_.begin_call(kStop);
  void* a = memory_.allocate(100);
  EXPECT_EQ(memory_.held(), kPiece);
  void* b = memory_.allocate(3 * kPiece);
  EXPECT_EQ(memory_.held(), 4 * kPiece);
  EXPECT_TRUE(memory_.contains(a) && memory_.contains(b));
  memory_.free(a);
  memory_.free(b);
  const CallMemory taken = memory_.end_call();
  EXPECT_EQ(taken.bytes, 4 * kPiece);
  EXPECT_FALSE(taken.overflowed);
  EXPECT_EQ(memory_.held(), 4 * kPiece) << "the next call has it at once";
  memory_.begin_call(kStop);
  memory_.free(memory_.allocate(kPiece));
  EXPECT_EQ(memory_.end_call().bytes, kPiece);
}

TEST_F(LaneMemoryTest, StopsACallThatMayNotHaveMore) {
  memory_.begin_call(kStop);
  void* most = memory_.allocate(8 * kPiece);
  EXPECT_FALSE(memory_.overflowed());
  EXPECT_THROW(memory_.allocate(1), LaneOverflow);
  EXPECT_TRUE(memory_.overflowed());
  memory_.free(most);
  const CallMemory taken = memory_.end_call();
  EXPECT_TRUE(taken.overflowed);
  EXPECT_FALSE(taken.by_device) << "it was not asked";
  EXPECT_EQ(taken.bytes, 9 * kPiece) << "what it would have taken so far";
  memory_.begin_call(kStop);
  EXPECT_FALSE(memory_.overflowed()) << "the next call is another one";
  memory_.free(memory_.allocate(1));
  EXPECT_FALSE(memory_.end_call().overflowed);
}

TEST_F(LaneMemoryTest, LendsHostMemoryToACallThatIsToEnd) {
  memory_.begin_call(kLend);
  void* device = memory_.allocate(8 * kPiece);
  void* lent = memory_.allocate(2 * kPiece);
  std::memset(lent, 1, 2 * kPiece);
  EXPECT_TRUE(memory_.overflowed());
  EXPECT_TRUE(memory_.contains(lent));
  memory_.free(lent);
  EXPECT_EQ(memory_.allocate(2 * kPiece), lent) << "page-locking takes long: it is given again";
  EXPECT_EQ(loans_, 1);
  memory_.free(lent);
  memory_.free(device);
  EXPECT_EQ(memory_.end_call().bytes, 10 * kPiece) << "as if it had been on the device";
  EXPECT_EQ(loans_, 0);
}

TEST_F(LaneMemoryTest, StopsACallToWhichTheHostHasNothingToLend) {
  host_ = 0;
  memory_.begin_call(kLend);
  EXPECT_THROW(memory_.allocate(9 * kPiece), LaneOverflow);
  EXPECT_NO_THROW(memory_.free(memory_.allocate(8 * kPiece))) << "what there is room for comes from the device";
  EXPECT_TRUE(memory_.end_call().overflowed);
}

TEST_F(LaneMemoryTest, AsksOthersToGiveBackWhatTheDeviceHasNotGot) {
  budget_ = 32 * kPiece;
  memory_.begin_call(kStop);
  void* most = memory_.allocate(16 * kPiece);
  EXPECT_EQ(made_free_, 0);
  EXPECT_THROW(memory_.allocate(kPiece), LaneOverflow);
  EXPECT_EQ(made_free_, 1);
  memory_.free(most);
  EXPECT_TRUE(memory_.end_call().by_device);
}

TEST_F(LaneMemoryTest, GivesBackPagesBehindTheLastPart) {
  memory_.begin_call(kStop);
  void* stays = memory_.allocate(kPiece);
  memory_.free(memory_.allocate(6 * kPiece));
  memory_.end_call();
  bool waited = false;
  memory_.trim([&] { waited = true; }); // nobody grows meanwhile
  EXPECT_TRUE(waited) << "the device may still use them";
  EXPECT_EQ(memory_.held(), kPiece);
  memory_.free(stays);
  memory_.trim([] {});
  EXPECT_EQ(memory_.held(), 0);
  EXPECT_TRUE(memory_.empty());
}

TEST_F(LaneMemoryTest, RefusesFromAnAllocationOn) {
  memory_.refuse_from(3);
  memory_.begin_call(kStop);
  memory_.allocate(1);
  memory_.allocate(1);
  EXPECT_THROW(memory_.allocate(1), LaneOverflow);
  memory_.end_call();
  memory_.begin_call(kStop);
  for (int i = 0; i < 5; ++i) {
    EXPECT_NO_THROW(memory_.allocate(1)) << "one call only";
  }
}

/// Threads that allocate and free beside each other, as autograd's do beside the call's.
TEST_F(LaneMemoryTest, GivesEachThreadItsOwn) {
  budget_ = 60 * kPiece;
  memory_.begin_call(kLend);
  std::vector<std::thread> threads;
  for (int thread = 0; thread < 4; ++thread) {
    threads.emplace_back([this, thread] {
      std::mt19937 random(thread);
      std::vector<std::pair<std::byte*, std::uint64_t>> mine;
      for (int step = 0; step < 500; ++step) {
        if (mine.size() < 4) {
          const std::uint64_t bytes = 1 + random() % (kPiece / 2);
          auto* data = static_cast<std::byte*>(memory_.allocate(bytes));
          data[0] = data[bytes - 1] = static_cast<std::byte>(thread);
          mine.emplace_back(data, bytes);
        } else {
          const auto [data, bytes] = mine.back();
          EXPECT_EQ(data[0], static_cast<std::byte>(thread));
          EXPECT_EQ(data[bytes - 1], static_cast<std::byte>(thread));
          memory_.free(data);
          mine.pop_back();
        }
      }
      for (const auto& [data, bytes] : mine) {
        memory_.free(data);
      }
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  memory_.end_call();
  EXPECT_TRUE(memory_.empty());
}

/// Lanes that keep more pages than there is room for, and grow beside each other: all of them get on, and together they
/// never hold more than the room.
TEST(LaneMemory, LanesThatGrowAtOnceStayWithinTheirRoom) {
  constexpr int kLanes = 4;
  constexpr std::uint64_t kRoom = 16;
  LaneGate gate(kLanes);
  gate.set_room(kRoom * kPiece);
  const auto growth = std::make_shared<Mutex>();
  std::vector<std::unique_ptr<LaneMemory>> lanes;
  const auto held = [&] {
    std::uint64_t bytes = 0;
    for (const auto& lane : lanes) {
      bytes += lane->held();
    }
    return bytes;
  };
  for (int lane = 0; lane < kLanes; ++lane) {
    LaneMemory::Callbacks callbacks;
    callbacks.growth = growth;
    callbacks.may_hold = [&, lane](std::uint64_t bytes) {
      const auto fits = [&] { return held() - lanes[lane]->held() + bytes <= gate.room(); };
      for (int other = 0; other < kLanes && !fits(); ++other) {
        if (other != lane) {
          lanes[other]->trim([] { std::this_thread::yield(); });
        }
      }
      return gate.extend(lane, bytes) && fits();
    };
    lanes.push_back(std::make_unique<LaneMemory>(std::make_unique<FakePages>(64 * kPiece), std::move(callbacks),
                                                 HostLoans::Source{}));
  }
  std::atomic<int> too_much = 0;
  std::atomic<int> overflows = 0;
  in_parallel(6, [&](int thread) {
    std::mt19937 random(static_cast<unsigned>(thread));
    for (int call = 0; call < 300; ++call) {
      const std::uint64_t units = 1 + random() % 7;
      const LaneLock lane(gate, nullptr, units * kPiece);
      LaneMemory& memory = *lanes[lane.lane()];
      memory.begin_call(LaneMemory::Overflow::stop);
      std::vector<void*> parts;
      try {
        for (std::uint64_t unit = 0; unit < units; ++unit) {
          parts.push_back(memory.allocate(kPiece));
          const std::lock_guard lock(*growth);
          too_much += held() > kRoom * kPiece ? 1 : 0;
        }
      } catch (const LaneOverflow&) {
        ++overflows;
      }
      for (void* part : parts) {
        memory.free(part);
      }
      memory.end_call();
    }
  });
  EXPECT_EQ(too_much, 0);
  EXPECT_EQ(overflows, 0) << "each claimed what it took";
}

} // namespace
} // namespace offload::test
