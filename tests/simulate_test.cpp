#include <gtest/gtest.h>

#include <offload/bytes.h>
#include <offload/plan/clock_device.h>
#include <offload/plan/simulate.h>

#include "weight_tables.h"

namespace offload::test {
namespace {

MachineProfile machine_of_simulations() { return {"a machine", 50e3, 5, 20e3, 2e3, 1e6, 1e6, 1e6, 1e6, 10}; }

/// Layers of 32 MiB, none resident, that are read one after another.
struct Layers {
  Layers(std::size_t count, double compute_us, std::uint64_t ring_layers) {
    std::vector<std::uint64_t> bytes(count, 32_MiB);
    pass.weights = shared_table(bytes);
    for (WeightId layer = 0; layer < count; ++layer) {
      pass.steps.push_back({{layer}, compute_us});
    }
    residency = {std::vector<std::uint64_t>(count), ring_layers * 32_MiB};
  }

  Simulated run(Callers callers = {}) const { return simulate(pass, residency, machine_of_simulations(), callers); }

  Pass pass;
  Residency residency;
};

TEST(Simulate, CallersShareAPass) {
  const Layers layers(24, 30, 4);
  const Simulated one = layers.run();
  for (const int callers : {2, 8, 16}) {
    const Simulated round = layers.run({callers, callers});
    EXPECT_LE(round.time_us, 1.1 * one.time_us) << callers;
    EXPECT_GE(round.time_us, 0.9 * one.time_us) << callers;
    EXPECT_LE(round.streamed_bytes, one.streamed_bytes / callers * 11 / 10) << callers;
  }
}

/// The pass that the first of them begins is open to the others, for longer where the ring is longer.
TEST(Simulate, CallersWhoComeBackOneAfterAnotherShareAPass) {
  const double one_us = Layers(24, 20, 3).run().time_us; // 676 a layer
  EXPECT_LE(Layers(24, 20, 3).run({8, 8, 1000}).time_us, 1.1 * one_us);
  EXPECT_LE(Layers(24, 20, 6).run({8, 8, 2500}).time_us, 1.1 * one_us);
  EXPECT_GE(Layers(24, 20, 2).run({8, 8, 2500}).time_us, 1.5 * one_us);
}

TEST(Simulate, CallersThatWaitForALaneTakeAnotherPass) {
  const Layers layers(24, 30, 4);
  const Simulated one = layers.run();
  const Simulated round = layers.run({8, 4});
  EXPECT_GE(round.time_us, 1.8 * one.time_us);
  EXPECT_LE(round.time_us, 2.2 * one.time_us);
}

TEST(Simulate, TheDeviceComputesForOneCallerAfterAnother) {
  const Layers layers(24, 700, 4); // a copy takes 676
  EXPECT_NEAR(layers.run({4, 4}).time_us, 4 * 24 * 700, 0.15 * 4 * 24 * 700);
}

/// A ring of one layer has no room for the next while the device computes for all.
TEST(Simulate, SeveralCallersNeedALongerRingThanOne) {
  const double short_us = Layers(24, 100, 1).run({4, 4}).time_us;
  const double long_us = Layers(24, 100, 3).run({4, 4}).time_us;
  EXPECT_LE(long_us * 1.3, short_us);
}

TEST(Simulate, OneCallerIsAheadOfTheDevice) {
  EXPECT_EQ(Layers(24, 20, 3).run({1, 1, 5000}).time_us, Layers(24, 20, 3).run().time_us);
}

TEST(Simulate, OneLaneServesCallersInTurn) {
  const Layers layers(12, 30, 4);
  EXPECT_NEAR(layers.run({3, 1}).time_us, 3 * layers.run().time_us, 0.1 * layers.run().time_us);
}

TEST(ClockDevice, AStreamGoesOnWhenWhatItWaitsForIsReached) {
  ClockDevice device(2);
  device.copy(10);
  const auto arrived = device.record_arrived();
  device.wait_arrived(0, arrived);
  device.compute(0, 5);
  const auto used = device.record_used(0);
  device.wait_used(used);
  device.copy(1);
  const auto last = device.record_arrived();
  EXPECT_EQ(device.next_us(), 10);
  device.advance(10);
  EXPECT_TRUE(arrived->reached());
  EXPECT_FALSE(used->reached());
  EXPECT_EQ(device.stall_us(), 10);
  device.advance(15);
  EXPECT_TRUE(used->reached());
  EXPECT_EQ(device.next_us(), 16);
  device.advance(16);
  EXPECT_TRUE(last->reached());
  EXPECT_EQ(device.next_us(), std::nullopt);
}

TEST(ClockDevice, LanesShareTheProcessor) {
  ClockDevice device(2);
  device.compute(0, 5);
  device.compute(1, 5);
  const auto first = device.record_used(0);
  const auto second = device.record_used(1);
  device.advance(5);
  EXPECT_TRUE(first->reached());
  EXPECT_FALSE(second->reached());
  device.advance(10);
  EXPECT_TRUE(second->reached());
}

} // namespace
} // namespace offload::test
