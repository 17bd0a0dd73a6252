#pragma once

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <cstdint>
#include <fstream>
#include <string>

namespace offload::test {

/// Asked without this library: are there leases on files, and locked memory?
inline bool system_allows_windows(const std::string& path) {
  const int descriptor = open(path.c_str(), O_RDONLY);
  struct statfs status{};
  const bool is_overlay = fstatfs(descriptor, &status) != 0 || status.f_type == OVERLAYFS_SUPER_MAGIC;
  const bool leases = !is_overlay && fcntl(descriptor, F_SETLEASE, F_RDLCK) == 0;
  close(descriptor);
  void* page = mmap(nullptr, 4 << 20, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  const bool locks = mlock(page, 4 << 20) == 0;
  munmap(page, 4 << 20);
  return leases && locks;
}

/// Memory of this process that may not leave, as the system counts it.
inline std::uint64_t locked_bytes() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("VmLck:")) {
      return std::stoull(line.substr(6)) << 10;
    }
  }
  return 0;
}

} // namespace offload::test
