#include <gtest/gtest.h>

#include <set>

#include <offload/bytes.h>
#include <offload/error.h>
#include <offload/profile.h>

namespace offload {
namespace {

const ShippedMachine& machine(const std::string& name) {
  for (const ShippedMachine& machine : shipped_machines()) {
    if (machine.name == name) {
      return machine;
    }
  }
  throw std::out_of_range(name);
}

MachineProfile profile(const std::string& name) { return shipped_profile(name); }

TEST(ShippedMachine, ComesBackFromJsonAsItWas) { // which refuses figures that are not positive
  for (const ShippedMachine& machine : shipped_machines()) {
    EXPECT_EQ(to_json(profile_from_json(to_json(machine.profile))), to_json(machine.profile)) << machine.name;
    EXPECT_EQ(to_json(shipped_profile(machine.name)), to_json(machine.profile)) << machine.name;
  }
}

TEST(ShippedMachine, HasANameOfItsOwnForCommandsAndForPlans) {
  std::set<std::string> names;
  for (const ShippedMachine& machine : shipped_machines()) {
    EXPECT_TRUE(names.insert(machine.name).second) << machine.name;
    EXPECT_EQ(machine.name.find_first_not_of("abcdefghijklmnopqrstuvwxyz0123456789-"), std::string::npos)
        << machine.name;
    EXPECT_NE(machine.profile.name.find(machine.link), std::string::npos) << machine.name;
  }
}

TEST(ShippedMachine, SaysWhereItsFiguresArePublished) {
  for (const ShippedMachine& machine : shipped_machines()) {
    EXPECT_NE(machine.sources.find("NVIDIA"), std::string::npos) << machine.name;
    EXPECT_TRUE(machine.host.starts_with("typical") || machine.host.find("specifications") != std::string::npos)
        << machine.name;
  }
}

/// A profile has what is reached: less than is published, and not by more than large operations lose.
TEST(ShippedMachine, ReachesHalfOfItsPeaksOrMore) {
  const auto expect_reached = [](const std::string& name, double reached, double peak) {
    EXPECT_GE(reached, 0.5 * peak) << name;
    EXPECT_LE(reached, 0.9 * peak) << name;
  };
  for (const auto& [name, memory_gb, link, peak, host, sources, profile] : shipped_machines()) {
    expect_reached(name, profile.link_bytes_per_us, peak.link_gb_per_s * 1e3);
    expect_reached(name, profile.memory_bytes_per_us, peak.memory_gb_per_s * 1e3);
    expect_reached(name, profile.fp64_flops_per_us, peak.fp64_tflops * 1e6);
    expect_reached(name, profile.fp32_flops_per_us, peak.fp32_tflops * 1e6);
    expect_reached(name, profile.half_flops_per_us, peak.half_tflops * 1e6);
    const auto sold = static_cast<std::uint64_t>(memory_gb) * 1_GiB;
    EXPECT_LT(profile.device_memory_bytes, sold) << name;
    EXPECT_GT(profile.device_memory_bytes, sold / 10 * 9) << name;
  }
}

TEST(ShippedMachine, WithEightLanesHasHalfTheLinkAndAllTheRest) {
  int pairs = 0;
  for (const ShippedMachine& narrow : shipped_machines()) {
    if (!narrow.name.ends_with("-x8")) {
      continue;
    }
    MachineProfile wide = profile(narrow.name.substr(0, narrow.name.size() - 3));
    EXPECT_DOUBLE_EQ(narrow.profile.link_bytes_per_us, wide.link_bytes_per_us / 2) << narrow.name;
    wide.link_bytes_per_us = narrow.profile.link_bytes_per_us;
    wide.name = narrow.profile.name;
    EXPECT_EQ(to_json(narrow.profile), to_json(wide)) << narrow.name;
    ++pairs;
  }
  EXPECT_EQ(pairs, 4);
  EXPECT_EQ(machine("rtx4060ti").link, "PCIe 4.0 x8") << "it has no other";
}

TEST(ShippedMachine, IsFasterWhereTheCardIs) {
  const auto expect_faster = [](const std::string& slow, const std::string& fast) {
    EXPECT_LT(profile(slow).fp32_flops_per_us, profile(fast).fp32_flops_per_us) << slow << ", " << fast;
    EXPECT_LT(profile(slow).half_flops_per_us, profile(fast).half_flops_per_us) << slow << ", " << fast;
    EXPECT_LT(profile(slow).memory_bytes_per_us, profile(fast).memory_bytes_per_us) << slow << ", " << fast;
    EXPECT_LE(profile(slow).link_bytes_per_us, profile(fast).link_bytes_per_us) << slow << ", " << fast;
  };
  expect_faster("gtx1060", "rtx3060");
  expect_faster("rtx3060", "rtx4090");
  expect_faster("rtx4060ti", "rtx4090");
  expect_faster("rtx4090", "rtx5090");
  expect_faster("l4", "a10");
  expect_faster("a100-80gb", "h100");
  expect_faster("h100-pcie", "h100");
  EXPECT_EQ(profile("gtx1060").half_flops_per_us, profile("gtx1060").fp32_flops_per_us) << "it has no tensor cores";
  EXPECT_EQ(profile("h100").half_flops_per_us, profile("h200").half_flops_per_us) << "the same chip";
  EXPECT_LT(profile("h100").memory_bytes_per_us, profile("h200").memory_bytes_per_us);
}

/// Measured on an H200: link 54.5 to 55.3 GB/s, a product of 4096 x 4096 matrices of fp32 in 2733 us.
TEST(ShippedMachine, OfAnH200IsWhatWasMeasured) {
  EXPECT_NEAR(profile("h200").link_bytes_per_us, 55e3, 1e3);
  EXPECT_NEAR(profile("h200").fp32_flops_per_us, 2 * 4096. * 4096 * 4096 / 2733, 1e6);
}

TEST(ShippedMachine, OfAnotherNameIsRefusedWithAllNames) {
  try {
    shipped_profile("rtx9090");
    FAIL() << "there is none";
  } catch (const InputError& error) {
    const std::string why = error.what();
    EXPECT_NE(why.find("'rtx9090'"), std::string::npos) << why;
    for (const ShippedMachine& machine : shipped_machines()) {
      EXPECT_NE(why.find(machine.name), std::string::npos) << why;
    }
  }
}

} // namespace
} // namespace offload
