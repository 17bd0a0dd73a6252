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
  explicit TemporaryFile(std::string_view bytes = {},
                         const std::filesystem::path& folder = std::filesystem::temp_directory_path()) {
    static int count = 0;
    path_ = folder / ("offload-test-" + std::to_string(getpid()) + "-" + std::to_string(count++));
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

/// The first folder that tests may write to in which a file has what `is_good` looks for, by its path; else the usual
/// one. What temporary files lie on may be memory, or an overlay.
template <typename IsGood>
std::filesystem::path folder_where(IsGood is_good) {
  std::filesystem::path usual = std::filesystem::temp_directory_path();
  for (const std::filesystem::path& folder :
       {usual, std::filesystem::path("/var/tmp"), std::filesystem::current_path(), std::filesystem::path("/dev/shm")}) {
    if (access(folder.c_str(), W_OK) == 0 && is_good(TemporaryFile("some bytes", folder).path())) {
      return folder;
    }
  }
  return usual;
}

} // namespace offload::test
