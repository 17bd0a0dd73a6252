#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <functional>
#include <vector>

#include <offload/bytes.h>
#include <offload/core/words.h>
#include <offload/error.h>
#include <offload/io/file.h>

namespace offload {

namespace {

/// Addresses that are as far into a huge page as the bytes are in the file: where the page cache has those together,
/// they are mapped together, and found more quickly by those who read them.
constexpr std::uint64_t kHugePageBytes = 2_MiB;
constexpr std::uint64_t kSampleBytes = 16_MiB; // one page of so many is looked for

/// On a file system where others may take away what is mapped, as a server does when the last name of a file goes.
bool is_remote(int descriptor) {
  // NFS, SMB, CIFS, SMB 2, Ceph, AFS, 9P, FUSE
  constexpr std::array<std::uint32_t, 8> kRemote = {0x6969,     0x517B,     0xFF534D42, 0xFE534D42,
                                                    0x00C36400, 0x5346414F, 0x01021997, 0x65735546};
  struct statfs status{};
  return fstatfs(descriptor, &status) != 0 ||
         std::find(kRemote.begin(), kRemote.end(), static_cast<std::uint32_t>(status.f_type)) != kRemote.end();
}

/// The file at addresses that suit its huge pages, or at others; null where it can not be mapped, as one of no bytes.
const std::byte* map_whole(int descriptor, std::uint64_t bytes) {
  void* anywhere = mmap(nullptr, bytes, PROT_READ, MAP_SHARED, descriptor, 0);
  if (anywhere == MAP_FAILED) {
    return nullptr;
  }
  const std::uint64_t pages = align_up(bytes, kPageBytes);
  void* reserved = mmap(nullptr, pages + kHugePageBytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (reserved == MAP_FAILED) {
    return static_cast<const std::byte*>(anywhere);
  }
  const auto address = reinterpret_cast<std::uintptr_t>(reserved);
  const std::uint64_t before = align_up(address, kHugePageBytes) - address;
  auto* aligned = static_cast<std::byte*>(reserved) + before;
  void* mapped = mmap(aligned, bytes, PROT_READ, MAP_SHARED | MAP_FIXED, descriptor, 0);
  if (before > 0) {
    munmap(reserved, before);
  }
  munmap(aligned + pages, kHugePageBytes - before);
  if (mapped == MAP_FAILED) { // what was at these addresses may be gone, and others may be there already
    return static_cast<const std::byte*>(anywhere);
  }
  munmap(anywhere, bytes);
  return static_cast<const std::byte*>(mapped);
}

} // namespace

File::File(std::string path) : path_(std::move(path)) {
  descriptor_ = open(path_.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor_ < 0) {
    throw ArchiveError(path_ + ": can not be opened: " + std::strerror(errno));
  }
  struct stat status{};
  if (fstat(descriptor_, &status) != 0 || !S_ISREG(status.st_mode)) {
    close(descriptor_);
    throw ArchiveError(path_ + ": is not a regular file");
  }
  size_ = static_cast<std::uint64_t>(status.st_size);
  modified_ = status.st_mtim;
  // By its descriptor: the name may be another file's by now.
  direct_ = open(("/proc/self/fd/" + std::to_string(descriptor_)).c_str(), O_RDONLY | O_CLOEXEC | O_DIRECT);
  // Of others' files mincore() says that all is there, unless one may write them.
  mincore_tells_ = status.st_uid == geteuid() ||
                   faccessat(AT_FDCWD, ("/proc/self/fd/" + std::to_string(descriptor_)).c_str(), W_OK, AT_EACCESS) == 0;
  mapped_ = is_remote(descriptor_) ? nullptr : map_whole(descriptor_, size_);
  was_cached_ = mapped_ && !mincore_tells_ && cached_share() > kMostlyCached;
}

File::~File() {
  if (mapped_) {
    munmap(const_cast<std::byte*>(mapped_), size_);
  }
  if (direct_ >= 0) {
    close(direct_);
  }
  close(descriptor_);
}

void File::read(void* dst, std::uint64_t offset, std::uint64_t bytes) const {
  auto* to = static_cast<std::byte*>(dst);
  while (bytes > 0) {
    const ssize_t got = pread(descriptor_, to, std::min<std::uint64_t>(bytes, 1ULL << 30), static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) {
      continue;
    }
    if (got <= 0) {
      throw ArchiveError(explain(offset, bytes, got < 0 ? -errno : 0));
    }
    to += got;
    offset += static_cast<std::uint64_t>(got);
    bytes -= static_cast<std::uint64_t>(got);
  }
}

std::optional<std::uint64_t> File::cached_bytes(std::uint64_t offset, std::uint64_t bytes) const {
  if (!mapped_ || !mincore_tells_) {
    return std::nullopt;
  }
  if (offset >= size_ || bytes == 0) {
    return 0;
  }
  const std::uint64_t begin = offset / kPageBytes * kPageBytes;
  const std::uint64_t end = std::min(size_, offset + bytes);
  std::vector<unsigned char> pages(align_up(end - begin, kPageBytes) / kPageBytes);
  if (mincore(const_cast<std::byte*>(mapped_) + begin, end - begin, pages.data()) != 0) {
    return std::nullopt;
  }
  const auto missing = std::find_if(pages.begin(), pages.end(), [](unsigned char page) { return (page & 1) == 0; });
  const std::uint64_t there = begin + static_cast<std::uint64_t>(missing - pages.begin()) * kPageBytes;
  return there > offset ? std::min(there, end) - offset : 0;
}

double File::cached_share() const {
  constexpr std::uint64_t kSamples = 64;
  std::uint64_t cached = 0;
  for (std::uint64_t i = kSamples; i-- > 0;) { // backwards: trying to read makes the system read ahead
    cached += is_cached_at(size_ / kSamples * i + size_ / kSamples / 2) ? 1 : 0;
  }
  return static_cast<double>(cached) / kSamples;
}

bool File::is_cached_at(std::uint64_t offset) const {
  if (const auto known = cached_bytes(offset, 1)) {
    return *known != 0;
  }
  char byte = 0;
  const iovec to{&byte, 1};
  return preadv2(descriptor_, &to, 1, static_cast<off_t>(offset), RWF_NOWAIT) == 1;
}

const std::byte* File::mapped_if_cached(std::uint64_t offset, std::uint64_t bytes) const {
  if (!mapped_ || bytes == 0 || offset > size_ || bytes > size_ - offset) {
    return nullptr;
  }
  if (!mincore_tells_) { // to ask for each range would bring what is asked for
    return was_cached_ ? mapped_ + offset : nullptr;
  }
  bool cached = is_cached_at(offset + bytes - 1);
  for (std::uint64_t at = 0; cached && at < bytes; at += kSampleBytes) {
    cached = is_cached_at(offset + at);
  }
  return cached ? mapped_ + offset : nullptr;
}

bool File::contains(const void* address) const {
  const auto* byte = static_cast<const std::byte*>(address);
  return mapped_ && std::less_equal<>()(mapped_, byte) && std::less<>()(byte, mapped_ + size_);
}

std::string File::explain(std::uint64_t offset, std::uint64_t bytes, std::int64_t result) const {
  const std::string where = path_ + ": " + std::to_string(bytes) + " bytes at " + std::to_string(offset);
  return result < 0 ? where + " can not be read: " + std::strerror(static_cast<int>(-result))
                    : where + " are not there: the file was cut short";
}

void File::check_unchanged() const {
  struct stat status{};
  if (fstat(descriptor_, &status) != 0) {
    throw ArchiveError(path_ + ": can not be looked at: " + std::strerror(errno));
  }
  if (static_cast<std::uint64_t>(status.st_size) != size_) {
    throw ArchiveError(path_ + ": was changed while it was in use: it had " + std::to_string(size_) +
                       " bytes and has " + std::to_string(status.st_size) + "; load it anew");
  }
  if (status.st_mtim.tv_sec != modified_.tv_sec || status.st_mtim.tv_nsec != modified_.tv_nsec) {
    throw ArchiveError(path_ + ": was changed while it was in use: load it anew");
  }
}

} // namespace offload
