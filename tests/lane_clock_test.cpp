// Times of a call, with a device that tells its own.

#include <gtest/gtest.h>

#include <chrono>
#include <deque>
#include <memory>
#include <thread>

#include <offload/core/lane_clock.h>

namespace offload::test {
namespace {

struct FakeMark final : Mark {
  explicit FakeMark(double us) : at_us(us) {}
  bool is_reached() const override { return at_us >= 0; }
  double us_after(const Mark& earlier) const override { return at_us - static_cast<const FakeMark&>(earlier).at_us; }
  const double at_us; // below zero: not yet
};

/// Takes one lap after the other, each mark where the device says.
LaneClock laps_at(std::deque<double> device_us, LaneClock::Thread thread,
                  std::chrono::microseconds each = std::chrono::microseconds(0)) {
  const std::size_t laps = device_us.size() / 2;
  auto left = std::make_shared<std::deque<double>>(std::move(device_us));
  LaneClock clock(
      [left] {
        const double us = left->front();
        left->pop_front();
        return std::make_shared<FakeMark>(us);
      },
      thread);
  for (std::size_t lap = 0; lap < laps; ++lap) {
    clock.begin_lap();
    std::this_thread::sleep_for(each);
    clock.end_lap();
  }
  return clock;
}

TEST(LaneClock, IsOverWhenTheLaneHasComeToTheEnd) {
  EXPECT_FALSE(laps_at({}, LaneClock::Thread::enqueues).is_over());
  EXPECT_FALSE(laps_at({5, -1}, LaneClock::Thread::enqueues).is_over());
  EXPECT_TRUE(laps_at({5, 6}, LaneClock::Thread::enqueues).is_over());
  LaneClock open = laps_at({5, 6, 7}, LaneClock::Thread::enqueues);
  open.begin_lap();
  EXPECT_FALSE(open.is_over());
}

TEST(LaneClock, GivesLapsByTheDevice) {
  const LaneClock clock = laps_at({100, 110, 150, 175}, LaneClock::Thread::enqueues);
  const Laps laps = clock.laps();
  ASSERT_EQ(laps.each.size(), 2U);
  EXPECT_DOUBLE_EQ(laps.each[0].device_us, 10);
  EXPECT_DOUBLE_EQ(laps.each[1].device_us, 25);
  EXPECT_GE(laps.each[0].host_us, 0);
  EXPECT_DOUBLE_EQ(clock.us_of(FakeMark(140)), 40);
}

TEST(LaneClock, KnowsNoThreadWhereItComputes) {
  const LaneClock clock = laps_at({0, 10}, LaneClock::Thread::computes);
  EXPECT_EQ(clock.laps().each[0].host_us, 0);
  EXPECT_EQ(clock.times()[0].host.us(), 0);
  EXPECT_DOUBLE_EQ(clock.times()[0].device.us(), 10);
}

/// The device is far behind in the second lap, and comes to the end of the first at once.
TEST(LaneClock, PutsNoLapOnTheDeviceBeforeItIsEnqueued) {
  const double far_us = 1e7;
  const LaneClock clock =
      laps_at({0, 2e4, far_us, far_us + 10}, LaneClock::Thread::enqueues, std::chrono::milliseconds(5));
  const std::vector<LapTimes> times = clock.times();
  ASSERT_EQ(times.size(), 2U);
  double least_us = far_us;
  for (const LapTimes& lap : times) {
    EXPECT_GE(lap.host.us(), 5000);
    least_us = std::min({least_us, lap.device.begin_us - lap.host.begin_us, lap.device.end_us - lap.host.end_us});
  }
  EXPECT_NEAR(least_us, 0, 1e-6) << "once it is there when it is enqueued";
  EXPECT_LT(times[1].host.end_us, times[1].device.begin_us);
}

} // namespace
} // namespace offload::test
