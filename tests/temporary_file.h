#pragma once

#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>

namespace offload::test {

/// A file with these bytes, gone with the object.
class TemporaryFile {
 public:
  explicit TemporaryFile(std::string_view bytes = {}) {
    static int count = 0;
    path_ = std::filesystem::temp_directory_path() /
            ("offload-test-" + std::to_string(getpid()) + "-" + std::to_string(count++));
    write(bytes);
  }
  ~TemporaryFile() {
    std::error_code ignored;
    std::filesystem::remove(path_, ignored);
  }
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;

  void write(std::string_view bytes) const {
    std::ofstream(path_, std::ios::binary | std::ios::trunc)
        .write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

} // namespace offload::test
