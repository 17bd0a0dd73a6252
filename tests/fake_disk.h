#pragma once

#include <offload/io/disk.h>
#include <offload/io/file_reader.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>

namespace offload::test {

inline std::string pattern(std::size_t bytes) {
  std::string made(bytes, '\0');
  for (std::size_t i = 0; i < bytes; ++i) {
    made[i] = static_cast<char>((i * 2654435761U) >> 13);
  }
  return made;
}

enum class Fault { none, fails, comes_short, ends, is_slow, is_interrupted, is_refused, is_held };

enum class From { disk, cache };

/// Reads the file, all from the disk or all from the page cache, except that one of its reads goes wrong.
class FakeDisk final : public Disk {
 public:
  FakeDisk(const std::shared_ptr<const File>& file, Fault fault, int which, From from = From::disk,
           Reads how = Reads::ring_or_threads)
      : file_(file),
        fault_(fault),
        which_(which),
        from_(from),
        disk_(make_disk(file, FileReader::kReadsInFlight, how)) {}

  std::int64_t read_cached(std::byte* dst, std::uint64_t offset, std::uint64_t bytes) override {
    if (from_ == From::disk) {
      return 0;
    }
    std::uint64_t some = std::min(bytes, file_->size() - offset);
    switch (reads++ == which_ ? fault_ : Fault::none) {
      case Fault::fails:
        return -EIO;
      case Fault::comes_short:
        some = (some + 1) / 2;
        break;
      case Fault::is_slow:
        std::this_thread::sleep_for(std::chrono::milliseconds(50));
        break;
      case Fault::none:
        break;
      default: // gone from the cache meanwhile
        return 0;
    }
    file_->read(dst, offset, some);
    return static_cast<std::int64_t>(some);
  }

  void start(std::byte* dst, std::uint64_t offset, std::uint64_t bytes, Done done) override {
    const Fault fault = from_ == From::disk && reads++ == which_ ? fault_ : Fault::none;
    disk_->start(dst, offset, bytes, [=, this, done = std::move(done)](std::int64_t result) {
      switch (fault) {
        case Fault::none:
          return done(result);
        case Fault::fails:
          return done(-EIO);
        case Fault::comes_short:
          std::memset(dst + result / 2, 0, result - result / 2); // what was not read is not there
          return done(result / 2);
        case Fault::ends:
          return done(0);
        case Fault::is_slow:
          std::this_thread::sleep_for(std::chrono::milliseconds(50));
          return done(result);
        case Fault::is_interrupted:
          return done(-EINTR);
        case Fault::is_refused:
          std::memset(dst, 0, bytes);
          return done(-EINVAL);
        case Fault::is_held: {
          const std::lock_guard lock(mutex_);
          held_ = [=] { done(result); };
          changed_.notify_one();
        }
      }
    });
  }

  void await_held() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return held_ != nullptr; });
  }

  /// Lets the read come that is held.
  void release() {
    await_held();
    std::unique_lock lock(mutex_);
    const auto come = std::exchange(held_, nullptr);
    lock.unlock();
    come();
  }

  std::atomic<int> reads = 0;

 private:
  const std::shared_ptr<const File> file_;
  const Fault fault_;
  const int which_;
  const From from_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::function<void()> held_;
  std::unique_ptr<Disk> disk_; // goes first: it calls back
};

} // namespace offload::test
