// The fake device itself: it must find what it is there to find.

#include <gtest/gtest.h>

#include <array>

#include <offload/error.h>

#include "fake_link.h"

namespace offload::test {
namespace {

using Bytes = std::array<std::byte, 4>;

struct Device {
  explicit Device(Order order) : link(2, order) {}
  void fetch(const Bytes& bytes) { link.copy(ring.data(), bytes.data(), bytes.size()); }
  void read(int lane, const Bytes& bytes) { link.read(lane, ring.data(), bytes.data(), bytes.size(), "w"); }

  FakeLink link;
  Bytes ring{};
  const Bytes a{std::byte{1}, std::byte{2}, std::byte{3}, std::byte{4}};
  const Bytes b{std::byte{5}, std::byte{6}, std::byte{7}, std::byte{8}};
};

TEST(FakeLink, RunsNothingBeforeItMust) {
  Device device(Order::copies_late);
  device.fetch(device.a);
  EXPECT_NE(device.ring, device.a);
  device.link.synchronize(*device.link.record_arrived());
  EXPECT_EQ(device.ring, device.a);
  EXPECT_EQ(device.link.bytes(), 4U);
}

TEST(FakeLink, LetsWaitsDecideTheOrder) {
  for (const Order order : {Order::copies_late, Order::compute_late, Order::random}) {
    Device device(order);
    device.fetch(device.a);
    device.link.wait_arrived(1, *device.link.record_arrived());
    device.read(1, device.a);
    device.link.wait(*device.link.record_used(1));
    device.fetch(device.b);
    device.link.run_all();
    EXPECT_TRUE(device.link.problems().empty());
    EXPECT_EQ(device.ring, device.b);
  }
}

TEST(FakeLink, TellsAReadThatDoesNotWait) {
  Device device(Order::copies_late);
  device.fetch(device.a);
  device.read(0, device.a);
  device.link.run_all();
  ASSERT_EQ(device.link.problems().size(), 2U);
  EXPECT_EQ(device.link.problems()[0], "w is read before it arrives");
  EXPECT_EQ(device.link.problems()[1], "w has wrong bytes");
}

TEST(FakeLink, TellsACopyThatDoesNotWait) {
  Device device(Order::compute_late);
  device.fetch(device.a);
  device.link.wait_arrived(0, *device.link.record_arrived());
  device.read(0, device.a);
  device.fetch(device.b);
  device.link.run_all();
  ASSERT_FALSE(device.link.problems().empty());
  EXPECT_EQ(device.link.problems()[0], "w is overwritten before it is read");
}

TEST(FakeLink, TellsAFenceThatCanNotBeReached) {
  Device device(Order::copies_late);
  device.fetch(device.a);
  FakeLink other;
  EXPECT_THROW(other.synchronize(*device.link.record_arrived()), Error);
  EXPECT_FALSE(other.problems().empty());
}

TEST(FakeLink, RefusesTheCallsThatItIsToldTo) {
  Device device(Order::copies_late);
  device.link.refuse(Call::copy, 1);
  device.fetch(device.a);
  EXPECT_THROW(device.fetch(device.a), Error);
  device.fetch(device.a);
  EXPECT_EQ(device.link.calls(Call::copy), 3U);
  EXPECT_EQ(device.link.copies(), 2U);
}

} // namespace
} // namespace offload::test
