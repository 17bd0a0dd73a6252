#include <offload/io/cache_window.h>

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <functional>
#include <thread>
#include <tuple>
#include <utility>

#include <offload/bytes.h>
#include <offload/core/words.h>
#include <offload/error.h>

namespace offload {

namespace {

constexpr std::uint64_t kSampleBytes = 16_MiB; // one page of so many is looked for
constexpr std::uint64_t kExchangeBytes = 32_MiB;

/// So much is exchanged in a second on a slow machine that is busy, and more.
constexpr std::uint64_t kExchangeBytesPerSecond = 128_MiB;

/// As LibTorch aligns tensors, and what it writes in archives.
constexpr std::uint64_t kTensorAlignment = 64;

constexpr std::uint64_t kPartBytes = 16_MiB; // of a range, for one thread: a few of them contend less
constexpr int kDropLocked = 24;              // MADV_DONTNEED_LOCKED, which not every glibc has

constexpr int kReserved = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;

/// Addresses that are as far into a huge page as the bytes are in the file: where the page cache has those together,
/// they are mapped in no time, and found more quickly by those who read them. Mapping 64 MiB took 0.07 ms, and 4 ms
/// without.
constexpr std::uint64_t kHugePageBytes = 2_MiB;

std::uint64_t reserved_bytes(const File& file) { return align_up(file.size(), kPageBytes) + kHugePageBytes; }

/// What is exchanged well before others stop waiting.
std::uint64_t most_bytes() {
  const int seconds = FileLease::break_seconds().value_or(1);
  return seconds > 0 ? static_cast<std::uint64_t>(seconds) * kExchangeBytesPerSecond : ~std::uint64_t{0};
}

std::uint64_t align_down(std::uint64_t value, std::uint64_t unit) { return value / unit * unit; }

} // namespace

std::unique_ptr<CacheWindow> CacheWindow::open(std::shared_ptr<const File> file, std::byte* ring, Team team) {
  if (file->size() == 0) {
    return nullptr;
  }
  void* reserved = mmap(nullptr, reserved_bytes(*file), PROT_NONE, kReserved, -1, 0);
  if (reserved == MAP_FAILED) {
    return nullptr;
  }
  std::unique_ptr<CacheWindow> window(
      new CacheWindow(std::move(file), ring, std::move(team), static_cast<std::byte*>(reserved)));
  window->lease_ = FileLease::take(*window->file_, [raw = window.get()] { raw->exchange_all(); });
  return window->lease_ ? std::move(window) : nullptr;
}

std::optional<double> CacheWindow::bytes_per_us(const std::shared_ptr<const File>& file) {
  const std::unique_ptr<CacheWindow> window = open(file, nullptr);
  const std::uint64_t bytes = std::min(file->size(), 64_MiB);
  const auto begin = std::chrono::steady_clock::now();
  if (!window || !window->map(0, 1, 0, bytes)) {
    return std::nullopt;
  }
  window->take(0, 1);
  const std::chrono::duration<double, std::micro> took = std::chrono::steady_clock::now() - begin;
  return static_cast<double>(bytes) / std::max(took.count(), 1.0);
}

CacheWindow::CacheWindow(std::shared_ptr<const File> file, std::byte* ring, Team team, std::byte* reserved)
    : file_(std::move(file)),
      ring_(ring),
      team_(std::move(team)),
      most_(most_bytes()),
      reserved_(reserved),
      addresses_(reserved + (align_up(reinterpret_cast<std::uintptr_t>(reserved), kHugePageBytes) -
                             reinterpret_cast<std::uintptr_t>(reserved))) {}

/// What is mapped goes before the lease.
CacheWindow::~CacheWindow() {
  const std::lock_guard lock(mutex_);
  ranges_.clear();
  closed_ = true;
  munmap(reserved_, reserved_bytes(*file_));
}

const std::byte* CacheWindow::map(std::uint64_t place, std::uint64_t room, std::uint64_t offset, std::uint64_t bytes) {
  const std::lock_guard lock(mutex_);
  const auto known = ranges_.find(offset);
  if (known != ranges_.end()) { // from another place, which is free and has not been taken yet
    places_.erase(known->second.place);
  }
  take_locked(place, room);
  if (known != ranges_.end()) {
    known->second.place = place;
  } else {
    if (closed_ || !may_map(offset, bytes)) {
      return nullptr;
    }
    const Pages pages = own_pages(offset, bytes);
    if (!lock_pages(pages)) {
      unmap_pages(pages);
      closed_ = true;
      return nullptr;
    }
    ranges_[offset] = {bytes, place};
    mapped_ += bytes;
  }
  places_[place] = {place + room, offset};
  const std::uint64_t ring = reinterpret_cast<std::uintptr_t>(ring_);
  const std::uint64_t begin = align_up(ring + place, kPageBytes);
  const std::uint64_t end = align_down(ring + place + room, kPageBytes);
  if (begin < end) {
    madvise(ring_ + (begin - ring), end - begin, MADV_DONTNEED);
  }
  return addresses_ + offset;
}

void CacheWindow::take(std::uint64_t place, std::uint64_t room) {
  const std::lock_guard lock(mutex_);
  take_locked(place, room);
}

bool CacheWindow::contains(const void* address) const {
  const auto* byte = static_cast<const std::byte*>(address);
  return std::less_equal<>()(addresses_, byte) && std::less<>()(byte, addresses_ + file_->size());
}

void CacheWindow::take_locked(std::uint64_t place, std::uint64_t room) {
  auto it = places_.upper_bound(place);
  if (it != places_.begin() && std::prev(it)->second.end > place) {
    --it;
  }
  while (it != places_.end() && it->first < place + room) {
    const auto range = ranges_.find(it->second.offset);
    const std::uint64_t offset = range->first;
    const Range gone = range->second;
    ranges_.erase(range);
    it = places_.erase(it);
    mapped_ -= gone.bytes;
    const Pages pages = own_pages(offset, gone.bytes);
    if (gone.is_copy) { // unmapping frees nothing of a piece of which a page is still mapped
      madvise(addresses_ + pages.begin, pages.end - pages.begin, MADV_REMOVE);
    }
    unmap_pages(pages);
  }
}

/// What is not, the system would read in order, and without hurry. Of a file of another time the reads have to tell.
bool CacheWindow::may_map(std::uint64_t offset, std::uint64_t bytes) const {
  if (offset % kTensorAlignment != 0 || bytes > most_ - std::min(most_, mapped_)) {
    return false;
  }
  try {
    file_->check_unchanged();
  } catch (const Error&) {
    return false;
  }
  for (std::uint64_t at = 0; at < bytes; at += kSampleBytes) {
    if (file_->cached_bytes(offset + at, 1).value_or(0) == 0) {
      return false;
    }
  }
  return file_->cached_bytes(offset + bytes - 1, 1).value_or(0) != 0;
}

/// The pages of a range, which is not in the list any more or not yet, that no other range has: the first and the last
/// may be shared.
CacheWindow::Pages CacheWindow::own_pages(std::uint64_t offset, std::uint64_t bytes) const {
  Pages pages{align_down(offset, kPageBytes), align_up(offset + bytes, kPageBytes)};
  const auto next = ranges_.lower_bound(offset + bytes);
  if (next != ranges_.end() && next->first < pages.end) {
    pages.end -= kPageBytes;
  }
  const auto previous = ranges_.lower_bound(offset);
  if (previous != ranges_.begin() && std::prev(previous)->first + std::prev(previous)->second.bytes > pages.begin) {
    pages.begin += kPageBytes;
  }
  return pages;
}

/// Locked first, so that no page goes again before the last has come.
bool CacheWindow::lock_pages(const Pages& pages) const {
  std::byte* at = addresses_ + pages.begin;
  const std::uint64_t bytes = pages.end - pages.begin;
  return mmap(at, bytes, PROT_READ, MAP_SHARED | MAP_FIXED, file_->descriptor(), static_cast<off_t>(pages.begin)) ==
             at &&
         mlock2(at, bytes, MLOCK_ONFAULT) == 0 && advise(pages, MADV_POPULATE_READ);
}

void CacheWindow::unmap_pages(const Pages& pages) const {
  advise(pages, kDropLocked); // side by side; older systems do all of it in what follows
  // Where that is refused, addresses stay that nobody uses, without memory.
  std::ignore = mmap(addresses_ + pages.begin, pages.end - pages.begin, PROT_NONE, kReserved | MAP_FIXED, -1, 0);
}

/// madvise() of parts, side by side. False when one was refused.
bool CacheWindow::advise(const Pages& pages, int advice) const {
  std::atomic<std::uint64_t> next = pages.begin;
  std::atomic<bool> refused = false;
  const auto work = [&] {
    for (std::uint64_t at = 0; (at = next.fetch_add(kPartBytes)) < pages.end;) {
      if (madvise(addresses_ + at, std::min(kPartBytes, pages.end - at), advice) != 0) {
        refused = true;
      }
    }
  };
  if (team_ && pages.end - pages.begin > kPartBytes) {
    team_(work);
  } else {
    work();
  }
  return !refused;
}

/// Where memory for a copy is not to be had, it may be a little later, while the system lets others wait.
void CacheWindow::exchange_all() {
  const auto try_all = [this] {
    const std::lock_guard lock(mutex_);
    closed_ = true;
    for (auto& [offset, range] : ranges_) {
      if (range.is_copy) {
        continue;
      }
      const std::uint64_t end = align_up(offset + range.bytes, kPageBytes);
      for (std::uint64_t begin = align_down(offset, kPageBytes); begin < end; begin += kExchangeBytes) {
        if (!exchange(begin, std::min(end, begin + kExchangeBytes))) {
          return false;
        }
      }
      range.is_copy = true;
    }
    return true;
  };
  while (!try_all()) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
}

/// Whoever reads there meanwhile gets the pages of the file or those of the copy, and nothing between. Shared memory
/// does not count as data of the process (RLIMIT_DATA).
bool CacheWindow::exchange(std::uint64_t begin, std::uint64_t end) const {
  const std::uint64_t bytes = end - begin;
  void* copy = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (copy == MAP_FAILED) {
    return false;
  }
  std::memcpy(copy, addresses_ + begin, bytes);
  if (mremap(copy, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, addresses_ + begin) == MAP_FAILED) {
    munmap(copy, bytes);
    return false;
  }
  return true;
}

} // namespace offload
