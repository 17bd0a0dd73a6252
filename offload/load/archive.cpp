#include <offload/load/archive.h>

#include <c10/core/Device.h>
#include <c10/util/Exception.h>
#include <torch/csrc/jit/serialization/import.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>

#include <offload/error.h>

namespace offload {

namespace {

/// Refuses what can not be an archive, with the reason that a reader of zip files would hide.
void look_at_file(const std::string& path) {
  namespace fs = std::filesystem;
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  if (!fs::exists(status)) {
    throw ArchiveError(path + ": no such file");
  }
  if (fs::is_directory(status)) {
    throw ArchiveError(path + ": is a directory, not a TorchScript archive");
  }
  std::ifstream file(path, std::ios::binary);
  if (!file) {
    throw ArchiveError(path + ": can not be opened: " + std::strerror(errno));
  }
  std::array<char, 4> magic{};
  file.read(magic.data(), magic.size());
  if (file.gcount() == 0) {
    throw ArchiveError(path + ": is empty");
  }
  if (std::memcmp(magic.data(), "PK\3\4", magic.size()) != 0) {
    throw ArchiveError(path +
                       ": is not a TorchScript archive; make one with torch.jit.script(model.eval()).save(path)");
  }
}

} // namespace

torch::jit::Module read_archive(const std::string& path) {
  look_at_file(path);
  try {
    return torch::jit::load(path, c10::Device(c10::kCPU));
  } catch (const c10::Error& error) {
    throw ArchiveError(path + ": can not be loaded as TorchScript: " + error.what_without_backtrace());
  } catch (const std::exception& error) {
    throw ArchiveError(path + ": can not be loaded as TorchScript: " + error.what());
  }
}

} // namespace offload
