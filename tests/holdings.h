#pragma once

#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>

namespace offload::test {

/// What this process has of the system.
struct Holdings {
  std::uint64_t resident = 0;
  std::size_t threads = 0;
  std::size_t descriptors = 0;

  static Holdings now() {
    Holdings holdings;
    std::ifstream statm("/proc/self/statm");
    std::uint64_t pages = 0;
    statm >> pages >> holdings.resident;
    holdings.resident *= static_cast<std::uint64_t>(sysconf(_SC_PAGESIZE));
    holdings.threads = entries("/proc/self/task");
    holdings.descriptors = entries("/proc/self/fd");
    return holdings;
  }

 private:
  static std::size_t entries(const char* folder) {
    const std::filesystem::directory_iterator all(folder);
    return static_cast<std::size_t>(std::distance(begin(all), end(all)));
  }
};

} // namespace offload::test
