#pragma once

#include <malloc.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

namespace offload::test {

/// What this process has of the system.
struct Holdings {
  std::uint64_t resident = 0;
  std::size_t threads = 0;
  std::size_t descriptors = 0;

  static Holdings now() {
    malloc_trim(0); // what threads that have ended had is kept for others
    Holdings holdings;
    std::ifstream statm("/proc/self/statm");
    std::uint64_t pages = 0;
    statm >> pages >> holdings.resident;
    holdings.resident *= static_cast<std::uint64_t>(sysconf(_SC_PAGESIZE));
    holdings.threads = threads_now();
    holdings.descriptors = entries("/proc/self/fd");
    return holdings;
  }

 private:
  /// Those of the kernel that work for io_uring come and go as it pleases.
  static std::size_t threads_now() {
    std::size_t count = 0;
    for (const auto& thread : std::filesystem::directory_iterator("/proc/self/task")) {
      std::ifstream file(thread.path() / "comm");
      std::string name;
      file >> name;
      count += name.starts_with("iou-") ? 0 : 1;
    }
    return count;
  }

  static std::size_t entries(const char* folder) {
    const std::filesystem::directory_iterator all(folder);
    return static_cast<std::size_t>(std::distance(begin(all), end(all)));
  }
};

} // namespace offload::test
