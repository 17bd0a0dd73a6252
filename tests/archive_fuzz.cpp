// For libFuzzer: what reads archives before PyTorch's importer does, fed with anything. It gives records and what
// pickles refer to, or an ArchiveError, in memory bounded by the archive; nothing else.
//
// usage: archive_fuzz CORPUS [-max_total_time=SECONDS]     the corpus: tests/corpus

#include <offload/error.h>
#include <offload/load/code.h>
#include <offload/load/pickle.h>
#include <offload/load/records.h>
#include <offload/load/source_ranges.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <string>

#include "mutations.h"

namespace offload::test {
namespace {

/// A file that is nowhere on a disk, with what is to be read.
const std::string& path_of(const std::string& bytes) {
  static const int kFile = memfd_create("archive", MFD_CLOEXEC);
  static const std::string kPath = "/proc/self/fd/" + std::to_string(kFile);
  if (ftruncate(kFile, 0) != 0 || pwrite(kFile, bytes.data(), bytes.size(), 0) != static_cast<ssize_t>(bytes.size())) {
    std::abort();
  }
  return kPath;
}

void read(const std::string& bytes) {
  try {
    const Records records(path_of(bytes));
    std::uint64_t steps = kMostPickleSteps;
    for (const ZipRecord& record : records.all()) {
      const std::string content = read_zip_record(*records.file(), record);
      if (record.name.ends_with(".pkl")) {
        read_pickle(content, record.name, steps);
      } else if (record.name.ends_with(".debug_pkl")) {
        check_source_ranges(content, record.name, steps);
      } else {
        check_code(content, record.name);
      }
    }
  } catch (const ArchiveError&) { // what a damaged archive is for
  }
}

} // namespace
} // namespace offload::test

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t bytes) {
  offload::test::read({reinterpret_cast<const char*>(data), bytes});
  return 0;
}

/// libFuzzer's own mutations rarely get past a checksum.
extern "C" std::size_t LLVMFuzzerMutate(std::uint8_t* data, std::size_t bytes, std::size_t most);
extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t bytes, std::size_t most, unsigned seed) {
  offload::test::Dice dice(seed);
  if (dice() % 4 == 0) {
    return LLVMFuzzerMutate(data, bytes, most);
  }
  const std::string changed = offload::test::mutate({reinterpret_cast<const char*>(data), bytes}, dice);
  const std::size_t size = std::min(changed.size(), most);
  std::copy_n(changed.data(), size, data);
  return size;
}
