#include <offload/core/host_limits.h>

#include <algorithm>
#include <fstream>
#include <initializer_list>
#include <iterator>
#include <optional>
#include <sstream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace offload {

namespace {

std::string& system_root() {
  static std::string root;
  return root;
}

/// What cgroups of one version call what is asked here.
struct Files {
  std::initializer_list<const char*> limits; ///< no number where there is no limit
  const char* used;
  std::initializer_list<std::string_view> reclaimable; ///< lines of memory.stat
};
const Files kVersion1 = {
    {"memory.limit_in_bytes"}, "memory.usage_in_bytes", {"total_inactive_file", "total_active_file"}};
const Files kVersion2 = {
    {"memory.max", "memory.high"}, "memory.current", {"inactive_file", "active_file", "slab_reclaimable"}};

std::optional<std::uint64_t> number_in(const std::string& path) {
  std::ifstream file(path);
  std::uint64_t number = 0;
  return file >> number ? std::optional(number) : std::nullopt;
}

/// The sum of the lines "KEY NUMBER" with one of `keys`.
std::uint64_t sum_of(const std::string& path, std::initializer_list<std::string_view> keys) {
  std::ifstream file(path);
  std::uint64_t sum = 0;
  std::string key;
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line);
    std::uint64_t number = 0;
    if (words >> key >> number && std::find(keys.begin(), keys.end(), key) != keys.end()) {
      sum += number;
    }
  }
  return sum;
}

/// What one cgroup leaves those that are in it.
std::uint64_t room_in(const std::string& group, const Files& files) {
  std::uint64_t limit = ~std::uint64_t{0};
  for (const char* name : files.limits) {
    limit = std::min(limit, number_in(group + "/" + name).value_or(limit));
  }
  const std::uint64_t used = number_in(group + "/" + files.used).value_or(0);
  const std::uint64_t needed = used - std::min(used, sum_of(group + "/memory.stat", files.reclaimable));
  return limit - std::min(limit, needed);
}

/// Whether a list of names, separated by commas, has "memory".
bool has_memory(const std::string& list) { return ("," + list + ",").find(",memory,") != std::string::npos; }

/// The group of this process in the hierarchy that may limit its memory, as "/a/b".
std::optional<std::string> own_group(bool version2) {
  std::ifstream file(system_root() + "/proc/self/cgroup");
  std::string number;
  std::string controllers;
  std::string group;
  while (std::getline(std::getline(std::getline(file, number, ':'), controllers, ':'), group)) {
    if (version2 ? number == "0" && controllers.empty() : has_memory(controllers)) { // as "0::/a/b", or "4:memory:/a/b"
      return group;
    }
  }
  return std::nullopt;
}

/// As "/c" for "/a/b/c" below "/a/b", and nothing where the two are one. Of a group elsewhere, as that of another
/// namespace is, nothing either: what is mounted is ours.
std::string path_below(const std::string& root, const std::string& group) {
  const std::string prefix = root == "/" ? "" : root;
  const std::string below = group.starts_with(prefix) ? group.substr(prefix.size()) : "";
  return below.starts_with('/') && !below.starts_with("/..") && below != "/" ? below : "";
}

/// What all groups around this process leave it.
std::uint64_t room_in_groups() {
  std::uint64_t room = ~std::uint64_t{0};
  std::ifstream file(system_root() + "/proc/self/mountinfo");
  for (std::string line; std::getline(file, line);) { // as in "35 31 0:32 ROOT POINT rw ... - TYPE SOURCE OPTIONS"
    std::istringstream words(line);
    const std::vector<std::string> mount(std::istream_iterator<std::string>(words), {});
    const auto dash = std::find(mount.begin(), mount.end(), "-");
    if (mount.end() - dash < 4 || dash - mount.begin() < 5) {
      continue;
    }
    const bool version2 = dash[1] == "cgroup2";
    const auto group = version2 || (dash[1] == "cgroup" && has_memory(dash[3])) ? own_group(version2) : std::nullopt;
    if (!group) {
      continue;
    }
    const Files& files = version2 ? kVersion2 : kVersion1;
    const std::string top = system_root() + mount[4];
    room = std::min(room, room_in(top, files));
    for (std::string below = path_below(mount[3], *group); !below.empty(); below.resize(below.rfind('/'))) {
      room = std::min(room, room_in(top + below, files));
    }
  }
  return room;
}

} // namespace

void set_system_root(std::string root) { system_root() = std::move(root); }

std::uint64_t available_host_bytes() {
  const std::uint64_t kib = sum_of(system_root() + "/proc/meminfo", {"MemAvailable:"});
  return std::min(kib * 1024, room_in_groups());
}

} // namespace offload
