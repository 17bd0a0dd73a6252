#include <offload/core/host_limits.h>

#include <gtest/gtest.h>

#include <offload/bytes.h>

#include "fake_system.h"

namespace offload::test {
namespace {

class HostLimits : public testing::Test {
 protected:
  HostLimits() { system_.set_available(8_GiB); }

  /// This process is in the group `path`, of the hierarchy whose part below `root` is seen at sys/fs/cgroup.
  void join_version2(const std::string& path, const std::string& root = "/") const {
    system_.write("proc/self/cgroup", "0::" + path + "\n");
    system_.write("proc/self/mountinfo",
                  "22 1 0:5 / /proc rw - proc proc rw\n"
                  "30 22 0:26 " +
                      root + " /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n");
  }
  void join_version1(const std::string& path, const std::string& root = "/") const {
    system_.write("proc/self/cgroup", "5:cpu,cpuacct:/elsewhere\n4:hugetlb,memory:" + path + "\n0::/\n");
    system_.write("proc/self/mountinfo",
                  "31 30 0:28 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n"
                  "32 30 0:29 " +
                      root +
                      " /sys/fs/cgroup/memory rw - cgroup cgroup rw,hugetlb,memory\n"
                      "33 30 0:30 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n");
  }

  /// In GiB; what is "max" has no limit.
  void limit_version2(const std::string& group, const std::string& limit, std::uint64_t used,
                      std::uint64_t cached = 0) const {
    const std::string folder = "sys/fs/cgroup" + group + "/";
    system_.write(folder + "memory.max", limit == "max" ? limit : std::to_string(std::stoull(limit) << 30));
    system_.write(folder + "memory.high", "max\n");
    system_.write(folder + "memory.current", std::to_string(used << 30) + "\n");
    system_.write(folder + "memory.stat", "anon 1\nfile " + std::to_string(cached << 30) +
                                              "\ninactive_anon 5\ninactive_file " + std::to_string((cached << 30) / 2) +
                                              "\nactive_file " + std::to_string((cached << 30) / 4) +
                                              "\nslab_reclaimable " + std::to_string((cached << 30) / 4) + "\n");
  }
  void limit_version1(const std::string& group, std::uint64_t limit, std::uint64_t used,
                      std::uint64_t cached = 0) const {
    const std::string folder = "sys/fs/cgroup/memory" + group + "/";
    system_.write(folder + "memory.limit_in_bytes", std::to_string(limit << 30));
    system_.write(folder + "memory.usage_in_bytes", std::to_string(used << 30));
    system_.write(folder + "memory.stat", "cache 7\ninactive_file 1\ntotal_inactive_file " +
                                              std::to_string((cached << 30) / 2) + "\ntotal_active_file " +
                                              std::to_string((cached << 30) / 2) + "\n");
  }

  const FakeSystem system_;
};

TEST_F(HostLimits, WithoutGroupsAreThoseOfTheMachine) { EXPECT_EQ(available_host_bytes(), 8_GiB); }

TEST_F(HostLimits, TheMachineMayHaveLessThanAGroupAllows) {
  join_version2("/");
  limit_version2("", "100", 1);
  EXPECT_EQ(available_host_bytes(), 8_GiB);
}

TEST_F(HostLimits, ThePageCacheOfAGroupIsFree) {
  join_version2("/");
  limit_version2("", "4", 4, 3);
  EXPECT_EQ(available_host_bytes(), 3_GiB);
  join_version1("/");
  limit_version1("", 4, 4, 2);
  EXPECT_EQ(available_host_bytes(), 2_GiB);
}

TEST_F(HostLimits, TheLeastOfAllGroupsAroundCounts) {
  join_version2("/a/b/c");
  limit_version2("/a/b/c", "max", 1);
  limit_version2("/a/b", "6", 1);
  limit_version2("/a", "6", 5, 2);
  EXPECT_EQ(available_host_bytes(), 3_GiB);
  limit_version2("/a/b/c", "2", 1);
  EXPECT_EQ(available_host_bytes(), 1_GiB);
  join_version1("/a/b");
  limit_version1("/a/b", 8_GiB, 1); // as good as none
  limit_version1("/a", 5, 1);
  EXPECT_EQ(available_host_bytes(), 4_GiB);
  limit_version1("", 5, 3);
  EXPECT_EQ(available_host_bytes(), 2_GiB);
}

TEST_F(HostLimits, WhereAGroupIsSlowedDownIsALimit) {
  join_version2("/");
  limit_version2("", "7", 1);
  system_.write("sys/fs/cgroup/memory.high", std::to_string(3_GiB));
  EXPECT_EQ(available_host_bytes(), 2_GiB);
}

TEST_F(HostLimits, OnlyAPartOfTheHierarchyMayBeSeen) {
  join_version1("/docker/1234/inner", "/docker/1234"); // as it is bound into a container
  limit_version1("/inner", 3, 1);
  EXPECT_EQ(available_host_bytes(), 2_GiB);
  join_version2("/../other", "/"); // of a process from outside of the namespace
  limit_version2("", "3", 2);
  EXPECT_EQ(available_host_bytes(), 1_GiB);
}

TEST_F(HostLimits, AGroupOverItsLimitHasNothingLeft) {
  join_version2("/");
  limit_version2("", "1", 2);
  EXPECT_EQ(available_host_bytes(), 0U);
}

} // namespace
} // namespace offload::test
