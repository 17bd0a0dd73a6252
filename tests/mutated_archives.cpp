// Archives, whole and damaged, imported as offload::load does: an ArchiveError that says something, or the module that
// torch::jit::load makes of the same bytes, tensors on the file included: attributes, ties and code; in bounded time
// and memory.
//
// usage: mutated_archives [--count N] [--seed S] [--first I] [--show] FOLDER...
// Archive I of seed S is the same whatever came before it.

#include <c10/util/Exception.h>
#include <sys/resource.h>
#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/serialization/import.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <map>
#include <set>
#include <sstream>
#include <vector>

#include <offload/error.h>
#include <offload/graph/weights.h>
#include <offload/load/archive.h>
#include <offload/load/file_bytes.h>
#include <offload/load/zip.h>
#include <offload/tensor/values.h>

#include "mutations.h"
#include "temporary_file.h"

namespace offload::test {
namespace {

constexpr unsigned kSeconds = 60;                 // what takes longer has hung
constexpr std::uint64_t kDamagedBytes = 1 << 20;  // larger archives are looked at as they are
constexpr std::uint64_t kMostMemory = 4ULL << 30; // of the whole process, freed memory that a sanitizer keeps included

/// A tensor's geometry and bytes, wherever they lie.
std::string describe(const at::Tensor& tensor) {
  std::ostringstream text;
  text << tensor.toString() << tensor.device() << tensor.requires_grad() << tensor.layout();
  if (tensor.layout() != at::kStrided || !is_weight_like(tensor)) {
    text << tensor.to_dense(); // sparse or quantised: never left on the file
    return text.str();
  }
  text << tensor.sizes() << tensor.strides() << ' ' << tensor.storage_offset() << ' ' << tensor.storage().nbytes()
       << ' ';
  std::string bytes(tensor.storage().nbytes(), '\0');
  if (const FileBytes* there = file_bytes(tensor.storage())) {
    there->file->read(bytes.data(), there->offset, bytes.size());
  } else if (!bytes.empty()) {
    bytes.assign(static_cast<const char*>(tensor.storage().data()), bytes.size());
  }
  text << zip_crc(bytes);
  return text.str();
}

/// All that torch::jit::load gives: tensors by name, ties among them, other attributes, code.
std::map<std::string, std::string> contents_of(const torch::jit::Module& module) {
  std::map<std::string, std::string> contents;
  std::map<const void*, std::string> owners; // of storages
  visit_tensors("", module._ivalue(), [&](const std::string& name, const at::Tensor& tensor) {
    contents[name] = describe(tensor);
    if (tensor.has_storage()) {
      contents[name] += " of " + owners.emplace(tensor.storage().unsafeGetStorageImpl(), name).first->second;
    }
  });
  for (const auto& attribute : module.named_attributes()) {
    const c10::IValue& value = attribute.value;
    if (value.isInt() || value.isDouble() || value.isBool() || value.isString() || value.isNone()) {
      contents["value " + attribute.name] = c10::str(value);
    }
  }
  for (const torch::jit::Module& each : module.modules()) {
    for (const torch::jit::Method& method : each.get_methods()) {
      std::string& code = contents["code of " + method.function().qualname().qualifiedName()];
      try {
        code = method.graph()->toString();
      } catch (const c10::Error& error) { // positions in sources, which are looked up only now
        code = error.what_without_backtrace();
      }
    }
  }
  return contents;
}

struct Counts {
  std::uint64_t past_directory = 0;
  std::uint64_t loaded = 0;
  std::uint64_t failures = 0;
  std::map<std::string, std::uint64_t> reasons;
};

/// What is said of archives, without what differs between them.
std::string reason_of(std::string message, const std::string& path) {
  if (const std::size_t at = message.find(path); at != std::string::npos) {
    message.erase(at, path.size());
  }
  std::replace_if(
      message.begin(), message.end(), [](unsigned char c) { return std::isdigit(c) || !std::isprint(c); }, '#');
  return message.substr(0, 60);
}

bool passes_directory(const std::string& path) {
  try {
    read_zip_directory(File(path));
    return true;
  } catch (const ArchiveError&) {
    return false;
  }
}

/// Empty when all is as it should be.
std::string judge(const std::string& path, Counts& counts) {
  counts.past_directory += passes_directory(path) ? 1 : 0;
  std::map<std::string, std::string> ours;
  try {
    ours = contents_of(read_archive(path, Weights::on_file));
  } catch (const ArchiveError& error) {
    const std::string message = error.what();
    ++counts.reasons[reason_of(message, path)];
    for (const char* never : {"INTERNAL ASSERT", "Exception raised from", "std::bad_alloc", "Please report a bug"}) {
      if (message.find(never) != std::string::npos) {
        return "it says: " + message;
      }
    }
    return message.find(path) == std::string::npos ? "the path is not in: " + message : "";
  } catch (const std::exception& error) {
    return std::string("not an ArchiveError: ") + error.what();
  }
  ++counts.loaded;
  std::map<std::string, std::string> plain;
  try {
    plain = contents_of(torch::jit::load(path, c10::Device(c10::kCPU)));
  } catch (const std::exception& error) {
    return std::string("torch::jit::load refuses it: ") + error.what();
  }
  for (const auto& [name, content] : plain) {
    const auto mine = ours.find(name);
    if (mine == ours.end() || mine->second != content) {
      return name + " is not what torch::jit::load gives";
    }
  }
  return ours.size() == plain.size() ? "" : "it has more than torch::jit::load gives";
}

std::uint64_t peak_memory() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<std::uint64_t>(usage.ru_maxrss) << 10;
}

std::string contents_of_file(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

std::vector<std::filesystem::path> archives_in(const std::vector<std::string>& folders) {
  std::vector<std::filesystem::path> archives;
  for (const std::string& folder : folders) {
    for (const auto& entry : std::filesystem::directory_iterator(folder)) {
      const std::string name = entry.path().filename().string();
      if (name.ends_with(".pt") && !name.ends_with(".inputs.pt")) {
        archives.push_back(entry.path());
      }
    }
  }
  std::sort(archives.begin(), archives.end());
  return archives;
}

int run(const std::vector<std::string>& folders, std::uint64_t seed, std::uint64_t first, std::uint64_t count,
        bool show, const std::string& keep) {
  std::vector<std::filesystem::path> archives = archives_in(folders);
  Counts counts;
  const TemporaryFile file;
  const auto look_at = [&](const std::string& what, const std::string& bytes) {
    file.write(bytes);
    if (!keep.empty()) {
      std::ofstream(keep, std::ios::binary) << bytes;
    }
    std::cout << what << std::flush; // a crash leaves this line
    alarm(kSeconds);
    const std::string failure = judge(file.path(), counts);
    alarm(0);
    counts.failures += failure.empty() ? 0 : 1;
    std::cout << (failure.empty() ? "\r" : ": FAILED: " + failure + "\n");
  };
  for (const auto& archive : archives) {
    look_at(archive.string() + " as it is", contents_of_file(archive));
  }
  const Counts whole = std::exchange(counts, {});
  const std::size_t all = archives.size();
  std::erase_if(archives, [](const auto& archive) { return std::filesystem::file_size(archive) >= kDamagedBytes; });
  if (archives.empty()) {
    std::cerr << "no archives below 1 MiB in the folders\n";
    return 2;
  }
  for (std::uint64_t i = first; i < first + count; ++i) {
    std::seed_seq dice_seed{seed, i};
    Dice dice(dice_seed);
    const auto& archive = archives[dice() % archives.size()];
    look_at("seed " + std::to_string(seed) + ", archive " + std::to_string(i) + ", of " + archive.filename().string(),
            mutate(contents_of_file(archive), dice));
  }
  std::cout << "\n"
            << all << " archives, " << whole.loaded << " loaded as they are; " << count
            << " damaged ones: " << counts.past_directory << " got past the directory, " << counts.loaded << " loaded; "
            << counts.failures + whole.failures << " failures; peak of " << (peak_memory() >> 20) << " MiB\n";
  if (show) {
    for (const auto& reasons : {whole.reasons, counts.reasons}) {
      for (const auto& [reason, times] : reasons) {
        std::cout << times << " x " << reason << "\n";
      }
    }
  }
  const bool few = 3 * counts.past_directory < count;
  if (few || peak_memory() > kMostMemory) {
    std::cout << (few ? "FAILED: too few got past the directory\n" : "FAILED: too much memory\n");
  }
  return counts.failures + whole.failures > 0 || few || peak_memory() > kMostMemory ? 1 : 0;
}

} // namespace
} // namespace offload::test

int main(int argc, char** argv) {
  CLI::App app{"Imports archives that were damaged, and compares with torch::jit::load."};
  std::vector<std::string> folders;
  std::uint64_t count = 1000;
  std::uint64_t seed = 1;
  std::uint64_t first = 0;
  bool show = false;
  std::string keep;
  app.add_option("FOLDER", folders)->required();
  app.add_option("--count", count)->capture_default_str();
  app.add_option("--seed", seed)->capture_default_str();
  app.add_option("--first", first, "of --count archives")->capture_default_str();
  app.add_option("--keep", keep, "where the last archive is written");
  app.add_flag("--show", show, "what was said how often");
  CLI11_PARSE(app, argc, argv);
  return offload::test::run(folders, seed, first, count, show, keep);
}
