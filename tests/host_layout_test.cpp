#include <gtest/gtest.h>

#include <numeric>

#include <offload/bytes.h>
#include <offload/error.h>
#include <offload/feed/stores.h>
#include <offload/plan/host_layout.h>

namespace offload::test {
namespace {

using Kind = Source::Kind;

constexpr std::uint64_t kBytes = 1_MiB;

std::vector<HostWeight> weights(std::size_t count, bool in_file) {
  std::vector<HostWeight> all(count);
  for (std::size_t i = 0; i < count; ++i) {
    all[i].bytes = kBytes;
    all[i].begin = 64 + i * kBytes;
    all[i].true_bytes = kBytes - 64;
    all[i].is_in_file = in_file;
  }
  return all;
}

std::vector<WeightId> in_order(std::size_t count) {
  std::vector<WeightId> order(count);
  std::iota(order.begin(), order.end(), 0);
  return order;
}

std::vector<Kind> kinds(const HostLayout& layout) {
  std::vector<Kind> all;
  for (const Source& source : layout.sources) {
    all.push_back(source.kind);
  }
  return all;
}

HostBudgets budgets(std::optional<std::uint64_t> host, std::optional<std::uint64_t> pinned,
                    bool device_is_host = false) {
  return {device_is_host, host, pinned, 64_GiB};
}

TEST(HostLayout, LiesInTheOrderOfUseAndIsPageLockedAsFarAsTheBudgetGoes) {
  const HostLayout all = lay_out_host(weights(4, false), {2, 0, 3, 1}, budgets({}, {}));
  EXPECT_EQ(all.sources[2].offset, 0U);
  EXPECT_EQ(all.sources[1].offset, 3 * kBytes);
  EXPECT_TRUE(all.sources[1].direct);
  EXPECT_EQ(all.pinned(), 4 * kBytes);
  EXPECT_EQ(all.total(), 4 * kBytes);
  const HostLayout half = lay_out_host(weights(64, false), in_order(64), budgets({}, kStagingBytes + 3 * kBytes / 2));
  EXPECT_TRUE(half.sources[0].direct);
  EXPECT_FALSE(half.sources[1].direct) << "half of it is page-locked";
  EXPECT_EQ(half.staging, kStagingBytes);
  EXPECT_EQ(half.pinned(), kStagingBytes + 3 * kBytes / 2);
  EXPECT_EQ(half.total(), 64 * kBytes + kStagingBytes);
}

TEST(HostLayout, LeavesWhatHasNoRoomOnTheFileTheLastFirst) {
  const std::uint64_t buffers = kStagingBytes + FileReader::kBytesHeld;
  const HostLayout layout = lay_out_host(weights(3, true), {2, 0, 1}, budgets(buffers + 2 * kBytes, {}));
  EXPECT_EQ(kinds(layout), (std::vector<Kind>{Kind::memory, Kind::file, Kind::memory}));
  EXPECT_EQ(layout.sources[1].offset, 64 + kBytes) << "of the file";
  EXPECT_EQ(layout.sources[1].bytes, kBytes - 64) << "that the file has";
  EXPECT_FALSE(layout.sources[1].direct);
  EXPECT_EQ(layout.total(), buffers + 2 * kBytes);
  EXPECT_EQ(layout.in_memory, 2 * kBytes);
}

TEST(HostLayout, OfAHostLeavesAllOnTheFileButTables) {
  std::vector<HostWeight> some = weights(4, true);
  some[1].has_rows_looked_up = true;
  some[3] = {kBytes, 0, kBytes, false, /*can_stay_in_module=*/true, false};
  const HostLayout layout = lay_out_host(some, in_order(4), budgets({}, {}, true));
  EXPECT_EQ(kinds(layout), (std::vector<Kind>{Kind::file, Kind::memory, Kind::file, Kind::module}));
  EXPECT_TRUE(layout.sources[1].direct) << "the host reads it where it is";
  EXPECT_TRUE(layout.sources[3].direct);
  EXPECT_EQ(layout.pinned(), 0U);
  EXPECT_EQ(layout.wanted(), kBytes) << "the module has its own";
  const HostLayout poor = lay_out_host(some, in_order(4), budgets(FileReader::kBytesHeld + 3 * kBytes / 2, {}, true));
  EXPECT_EQ(poor.sources[1].kind, Kind::file) << "what is in memory already leaves it no room";
}

TEST(HostLayout, OfWhatAlwaysStaysOnTheDeviceTakesNothing) {
  std::vector<HostWeight> some = weights(2, true);
  some[0].bytes = 0;
  const HostLayout layout = lay_out_host(some, in_order(2), budgets({}, {}));
  EXPECT_EQ(layout.in_memory, kBytes);
  EXPECT_EQ(layout.reading, FileReader::kBytesHeld);
}

TEST(HostLayout, RefusesBudgetsThatAreTooSmall) {
  const auto refusal = [](bool in_file, std::optional<std::uint64_t> host, std::optional<std::uint64_t> pinned) {
    try {
      lay_out_host(weights(8, in_file), in_order(8), budgets(host, pinned));
    } catch (const InputError& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  EXPECT_NE(refusal(false, 4_MiB, {}).find("host_budget 4 MiB is too small"), std::string::npos);
  EXPECT_NE(refusal(false, {}, 1_MiB).find("staging buffers take 4 MiB"), std::string::npos);
  EXPECT_NE(refusal(false, 8_MiB, 9_MiB).find("is more than host_budget"), std::string::npos);
  EXPECT_NE(refusal(true, 8_MiB, {}).find("buffers, take"), std::string::npos);
  EXPECT_EQ(refusal(true, 41_MiB, {}), "");
}

} // namespace
} // namespace offload::test
