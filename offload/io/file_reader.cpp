#include <offload/io/file_reader.h>

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string>

#include <offload/bytes.h>

namespace offload {

namespace {

/// What `work` with a file throws, as an ArchiveError; null when nothing.
template <typename Work>
std::exception_ptr thrown_by(Work work) noexcept {
  try {
    work();
    return nullptr;
  } catch (const ArchiveError&) {
    return std::current_exception();
  } catch (const std::exception&) {
    return failure_of<ArchiveError>("host memory ran out while a file was read");
  }
}

} // namespace

FileReader::FileReader(std::shared_ptr<const File> file, std::unique_ptr<Disk> disk)
    : file_(std::move(file)), disk_(std::move(disk)) {
  void* memory = mmap(nullptr, kBytesHeld, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) {
    throw Error(std::string("no host memory to read ") + file_->path() + " through: " + std::strerror(errno) +
                "; free some");
  }
  buffers_ = static_cast<std::byte*>(memory);
  for (int i = 0; i < kReadsInFlight; ++i) {
    free_.push_back(buffers_ + i * kBufferBytes);
  }
}

FileReader::~FileReader() {
  disk_.reset();
  munmap(buffers_, kBytesHeld);
}

void FileReader::read(std::byte* dst, std::uint64_t offset, std::uint64_t bytes, Done done) {
  std::int64_t cached = 1;
  while (bytes > 0 && cached > 0) {
    cached = disk_->read_cached(dst, offset, bytes);
    if (cached < 0) {
      throw ArchiveError(file_->explain(offset, bytes, cached));
    }
    dst += cached;
    offset += static_cast<std::uint64_t>(cached);
    bytes -= static_cast<std::uint64_t>(cached);
  }
  if (bytes == 0) {
    file_->check_unchanged();
    done(nullptr);
    return;
  }
  auto read = std::make_shared<Read>(Read{dst, offset, bytes, std::move(done)});
  read->begin = offset / kDiskBlock * kDiskBlock;
  read->end = align_up(offset + bytes, kDiskBlock);
  {
    const Lock lock(mutex_);
    freed_.wait(mutex_, [&]() OFFLOAD_REQUIRES(mutex_) { return !free_.empty(); });
    read->buffer = free_.back();
    free_.pop_back();
  }
  try {
    start(read);
  } catch (...) {
    release_buffer(*read);
    throw;
  }
}

/// Ends on a thread of the disk, which nothing may leave.
void FileReader::start(const std::shared_ptr<Read>& read) {
  const std::uint64_t from = read->begin + read->have;
  disk_->start(read->buffer + read->have, from, read->end - from, [this, read](std::int64_t result) noexcept {
    bool resumed = false;
    auto failure = thrown_by([&] { resumed = resume(read, result); });
    if (!resumed) {
      finish(*read, std::move(failure));
    }
  });
}

/// A read may come short anywhere: then the rest is asked for, from the last whole block on. False when there is none.
bool FileReader::resume(const std::shared_ptr<Read>& read, std::int64_t result) {
  const std::uint64_t wanted = read->offset + read->bytes - read->begin;
  const std::uint64_t have = read->have + static_cast<std::uint64_t>(std::max<std::int64_t>(result, 0));
  const std::uint64_t whole = have / kDiskBlock * kDiskBlock;
  if (result == -EINTR || result == -EAGAIN || (have < wanted && whole > read->have)) {
    read->have = whole;
    start(read);
    return true;
  }
  if (result == -EINVAL) { // a disk with larger blocks than ours: through the page cache, then
    file_->read(read->dst, read->offset, read->bytes);
  } else if (have < wanted) { // it failed, or the file ends here: less than a block came
    throw ArchiveError(file_->explain(read->offset, read->bytes, result));
  } else {
    std::memcpy(read->dst, read->buffer + (read->offset - read->begin), read->bytes);
  }
  return false;
}

/// Nothing of the read is to be done any more.
void FileReader::finish(const Read& read, std::exception_ptr failure) {
  release_buffer(read);
  // A change explains what went wrong, and what seems right may be of both.
  if (auto change = thrown_by([&] { file_->check_unchanged(); })) {
    failure = std::move(change);
  }
  read.done(std::move(failure));
}

void FileReader::release_buffer(const Read& read) {
  {
    const Lock lock(mutex_);
    free_.push_back(read.buffer);
  }
  freed_.notify_one();
}

void FileReader::read_all(std::byte* dst, std::uint64_t offset, std::uint64_t bytes) {
  Mutex mutex;
  Condition changed;
  std::uint64_t pending = 0;
  std::exception_ptr failure;
  const Lock lock(mutex);
  for (std::uint64_t done = 0; done < bytes && !failure; done += kMostBytes) {
    ++pending;
    try {
      const Unlock unlocked(mutex);
      read(dst + done, offset + done, std::min(kMostBytes, bytes - done), [&](std::exception_ptr error) {
        const Lock done_lock(mutex);
        if (error) {
          failure = std::move(error);
        }
        --pending;
        changed.notify_one();
      });
    } catch (...) { // not begun with; those before it are under way still
      failure = std::current_exception();
      --pending;
    }
  }
  changed.wait(mutex, [&] { return pending == 0; });
  if (failure) {
    std::rethrow_exception(failure);
  }
}

} // namespace offload
