#include <offload/io/file_reader.h>

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include <offload/error.h>

namespace offload {

FileReader::FileReader(std::shared_ptr<const File> file, std::unique_ptr<Disk> disk)
    : file_(std::move(file)), disk_(std::move(disk)) {
  void* memory = mmap(nullptr, kBytesHeld, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) {
    throw Error(std::string("no host memory to read ") + file_->path() + " through: " + std::strerror(errno) +
                "; free some");
  }
  buffers_ = static_cast<std::byte*>(memory);
  for (int i = 0; i < kReadsInFlight; ++i) {
    free_.push_back(i);
  }
}

FileReader::~FileReader() {
  disk_.reset();
  munmap(buffers_, kBytesHeld);
}

std::string FileReader::changed() const {
  try {
    file_->check_unchanged();
    return "";
  } catch (const ArchiveError& error) {
    return error.what();
  }
}

void FileReader::read(std::byte* dst, std::uint64_t offset, std::uint64_t bytes, Done done) {
  std::int64_t cached = 0;
  do {
    cached = disk_->read_cached(dst, offset, bytes);
    if (cached > 0) {
      dst += cached;
      offset += static_cast<std::uint64_t>(cached);
      bytes -= static_cast<std::uint64_t>(cached);
    }
  } while (cached > 0 && bytes > 0);
  if (bytes == 0 || cached < 0) {
    done(cached < 0 ? file_->explain(offset, bytes, cached) : changed());
    return;
  }
  auto read = std::make_shared<Read>(Read{dst, offset, bytes, std::move(done)});
  {
    const Lock lock(mutex_);
    freed_.wait(mutex_, [&]() OFFLOAD_REQUIRES(mutex_) { return !free_.empty(); });
    read->buffer = free_.back();
    free_.pop_back();
  }
  read->begin = offset / kDiskBlock * kDiskBlock;
  read->end = (offset + bytes + kDiskBlock - 1) / kDiskBlock * kDiskBlock;
  try {
    start(read);
  } catch (...) {
    release_buffer(*read);
    throw;
  }
}

void FileReader::start(const std::shared_ptr<Read>& read) {
  std::byte* to = buffer(read->buffer) + read->have;
  const std::uint64_t from = read->begin + read->have;
  const std::uint64_t bytes = read->end - from;
  disk_->start(to, from, bytes, [this, read](std::int64_t result) { on_completion(read, result); });
}

/// On a thread of the disk, which nothing may leave.
void FileReader::on_completion(const std::shared_ptr<Read>& read, std::int64_t result) noexcept {
  try {
    resume(read, result);
  } catch (const std::exception&) {
    finish(read, no_memory_);
  }
}

/// A read may come short anywhere: then the rest is asked for, from the last whole block on.
void FileReader::resume(const std::shared_ptr<Read>& read, std::int64_t result) {
  const std::uint64_t wanted = read->offset + read->bytes - read->begin;
  if (result == -EINTR || result == -EAGAIN) {
    start(read);
    return;
  }
  if (result == -EINVAL) { // a disk with larger blocks than ours: through the page cache, then
    std::string error;
    try {
      file_->read(read->dst, read->offset, read->bytes);
    } catch (const ArchiveError& failure) {
      error = failure.what();
    }
    finish(read, error);
    return;
  }
  if (result <= 0) {
    finish(read, file_->explain(read->offset, read->bytes, result));
    return;
  }
  const std::uint64_t have = read->have + static_cast<std::uint64_t>(result);
  if (have < wanted) {
    const std::uint64_t whole = have / kDiskBlock * kDiskBlock;
    if (whole == read->have) { // less than a block: the file ends here
      finish(read, file_->explain(read->offset, read->bytes, 0));
      return;
    }
    read->have = whole;
    start(read);
    return;
  }
  std::memcpy(read->dst, buffer(read->buffer) + (read->offset - read->begin), read->bytes);
  finish(read, "");
}

/// Nothing of the read is to be done any more.
void FileReader::finish(const std::shared_ptr<Read>& read, const std::string& error) {
  release_buffer(*read);
  const std::string* reported = &error;
  std::string change;
  try {
    change = changed(); // it explains what went wrong, and what seems right may be of both
    reported = change.empty() ? &error : &change;
  } catch (const std::exception&) {
    reported = &no_memory_;
  }
  read->done(*reported);
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
      read(dst + done, offset + done, std::min(kMostBytes, bytes - done), [&](const std::string& error) {
        const Lock done_lock(mutex);
        failure = error.empty() ? failure : failure_of<ArchiveError>(error);
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
