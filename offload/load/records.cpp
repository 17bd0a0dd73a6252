#include <offload/load/records.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <filesystem>
#include <string_view>

#include <offload/bytes.h>
#include <offload/error.h>

namespace offload {

namespace {

constexpr std::uint64_t kMostTextBytes = 256_MiB; // unpacked

/// How to make what is wanted; messages end with it.
constexpr const char* kExport = "torch.jit.script(model.eval()).save('model.pt')";

[[noreturn]] void refuse(const std::string& path, const std::string& what, const std::string& remedy) {
  throw ArchiveError(path + ": is " + what + ", not a TorchScript archive; " + remedy + kExport);
}

/// What files begin with that are taken for archives.
void look_at_beginning(const std::string& path, std::string_view bytes) {
  if (bytes.starts_with("PK\3\4")) {
    return;
  }
  if (bytes.size() > 8 && bytes[8] == '{') { // eight bytes of length, then JSON
    refuse(path, "a safetensors file",
           "load the tensors into their model, model.load_state_dict(safetensors.torch.load_file(path)), and export "
           "that: ");
  }
  if (bytes.size() > 4 && bytes.substr(4).starts_with("PTMF")) {
    refuse(path, "a module for mobile devices, which PyTorch wrote as a flatbuffer",
           "export the model that it was made of: ");
  }
  if (bytes.starts_with("GGUF") || bytes.starts_with("\x89HDF")) {
    refuse(path, bytes[0] == 'G' ? "a GGUF file" : "an HDF5 file",
           "load the tensors into their model and export that: ");
  }
  if (bytes.starts_with("\x80\x02\x8a\nl\xfc\x9c\x46\xf9 j\xa8P\x19.")) {
    refuse(path, "what torch.save wrote before PyTorch 1.6",
           "load it in Python with torch.load, and export the model: ");
  }
  if (bytes.starts_with('\x80')) {
    refuse(path, "a pickle", "load it in Python, and export the model: ");
  }
  throw ArchiveError(path + ": is not a TorchScript archive, which begins as a zip file does; make one with " +
                     kExport);
}

/// Refuses what can not be an archive, with the reason that a reader of zip files would hide.
std::shared_ptr<const File> open_file(const std::string& path) {
  namespace fs = std::filesystem;
  if (path.empty() || path.find('\0') != std::string::npos) {
    throw ArchiveError("'" + path.substr(0, path.find('\0')) +
                       "': a path that is empty or has a zero byte names no file");
  }
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  if (!fs::exists(status)) {
    const bool is_absent = status.type() == fs::file_type::not_found;
    throw ArchiveError(path + ": " + (is_absent ? "no such file" : "can not be opened: " + error.message()));
  }
  if (fs::is_directory(status)) {
    throw ArchiveError(path + ": is a directory, not a TorchScript archive");
  }
  if (!fs::is_regular_file(status)) { // opening one may wait for ever
    throw ArchiveError(path + ": is not a regular file, so not a TorchScript archive");
  }
  auto file = std::make_shared<const File>(path);
  if (file->size() == 0) {
    throw ArchiveError(path + ": is empty");
  }
  std::array<char, 64> bytes{};
  const std::uint64_t count = std::min<std::uint64_t>(file->size(), bytes.size());
  file->read(bytes.data(), 0, count);
  look_at_beginning(path, {bytes.data(), count});
  return file;
}

/// Before any of it is read.
void check_text(const std::string& path, const std::vector<ZipRecord>& records) {
  std::uint64_t bytes = 0;
  for (const ZipRecord& record : records) {
    // No more of one than is refused, so that the sum is one, whatever they say.
    bytes += is_text(record) ? std::min(record.bytes, kMostTextBytes + 1) : 0;
    if (bytes > kMostTextBytes) {
      throw ArchiveError(path + ": holds more than " + format_bytes(kMostTextBytes) +
                         " of code and other text, with record " + record.name + " of " + format_bytes(record.bytes));
    }
  }
}

} // namespace

bool is_text(const ZipRecord& record) {
  const std::string name = lower_case(record.name);
  return name.ends_with(".py") || name.ends_with("pkl") || name.ends_with("version") || name.ends_with("byteorder");
}

Records::Records(const std::string& path) : file_(open_file(path)), records_(read_zip_directory(*file_)) {
  const std::string folder =
      records_.empty() ? "" : lower_case(records_[0].name.substr(0, records_[0].name.find('/') + 1));
  if (folder.empty()) {
    refuse(path, "a zip file of another kind", "make one with ");
  }
  for (std::size_t i = 0; i < records_.size(); ++i) {
    if (const std::string name = lower_case(records_[i].name); name.starts_with(folder)) {
      numbers_.emplace(name.substr(folder.size()), i);
    }
  }
  check_text(path, records_);
  look_at_kind();
}

std::optional<std::size_t> Records::find(const std::string& name) const {
  const auto found = numbers_.find(lower_case(name));
  return found == numbers_.end() ? std::nullopt : std::optional(found->second);
}

std::string Records::read(const std::string& name) const {
  const auto number = find(name);
  return number ? read_zip_record(*file_, records_[*number]) : "";
}

/// Refuses zip files of other kinds that PyTorch writes.
void Records::look_at_kind() const {
  if (read("byteorder") == "big") {
    throw ArchiveError(path() + ": was written on a big-endian machine, which this one can not read: export " +
                       "the model on a little-endian one");
  }
  if (has(".data/extern_modules")) {
    refuse(path(), "what torch.package wrote",
           "load it in Python, torch.package.PackageImporter(path).load_pickle(package, resource), and export the "
           "model: ");
  }
  if (has("model.json")) {
    throw ArchiveError(path() + ": was written before PyTorch 1.4: bring it up to date in Python, " +
                       "torch.jit.load(path).save('model.pt')");
  }
  if (has("constants.pkl") || std::any_of(numbers_.begin(), numbers_.end(),
                                          [](const auto& record) { return record.first.starts_with("code/"); })) {
    for (const char* name : {"constants.pkl", "data.pkl", "version"}) {
      if (!has(name) && !has(std::string(".data/") + name)) {
        throw ArchiveError(path() + ": is damaged: record " + name + " is not there");
      }
    }
    const std::string version = read(has(".data/version") ? ".data/version" : "version");
    if (version.empty() || version.size() > 18 || std::isdigit(static_cast<unsigned char>(version[0])) == 0) {
      throw ArchiveError(path() + ": is damaged: record version is no number");
    }
    return;
  }
  const auto any = [&](std::string_view part) {
    return std::any_of(records_.begin(), records_.end(),
                       [&](const ZipRecord& record) { return record.name.find(part) != std::string::npos; });
  };
  if (any("archive_format") || any("serialized_exported_program") || (any("models/") && any(".json"))) {
    refuse(path(), "a program of torch.export (.pt2)", "export the model that it was made of as TorchScript: ");
  }
  if (!has("data.pkl")) {
    refuse(path(), "a zip file of another kind", "make one with ");
  }
  const std::string pickle = read("data.pkl");
  // A pickled module names the class of the model; a state dict names containers and tensors only.
  if (pickle.find("_modules") != std::string::npos && pickle.find("_parameters") != std::string::npos) {
    refuse(path(), "a pickled nn.Module",
           "load it in Python, model = torch.load(path, weights_only=False), and export it: ");
  }
  refuse(path(), "a state dict, or other values that torch.save wrote",
         "load them into their model, model.load_state_dict(torch.load(path)), and export that: ");
}

} // namespace offload
