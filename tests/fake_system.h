#pragma once

#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>
#include <system_error>
#include <vector>

#include <offload/core/host_limits.h>

namespace offload::test {

/// What the system says of its memory, as a test wants it, for as long as the object lives.
class FakeSystem {
 public:
  FakeSystem()
      : root_((std::filesystem::temp_directory_path() / ("offload-system-" + std::to_string(getpid()))).string()) {
    set_system_root(root_);
  }
  ~FakeSystem() {
    set_system_root("");
    std::reverse(written_.begin(), written_.end());
    for (const std::string& path : written_) {
      std::error_code ignored;
      std::filesystem::remove(path, ignored);
    }
  }
  FakeSystem(const FakeSystem&) = delete;
  FakeSystem& operator=(const FakeSystem&) = delete;

  void write(const std::string& path, const std::string& text) const {
    for (std::size_t end = 0; end != std::string::npos; end = path.find('/', end + 1)) {
      if (std::filesystem::create_directory(root_ + "/" + path.substr(0, end))) {
        written_.push_back(root_ + "/" + path.substr(0, end));
      }
    }
    written_.push_back(root_ + "/" + path);
    std::ofstream(written_.back()) << text;
  }

  /// The machine's; a multiple of 1 KiB.
  void set_available(std::uint64_t bytes) const {
    write("proc/meminfo", "MemTotal: 99 kB\nMemFree: 1 kB\nMemAvailable: " + std::to_string(bytes / 1024) + " kB\n");
  }

 private:
  const std::string root_;
  mutable std::vector<std::string> written_; // files after their folders
};

} // namespace offload::test
