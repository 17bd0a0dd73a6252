#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <thread>

#include <offload/io/file.h>

namespace offload {

/// A read lease on a file (fcntl(2), F_SETLEASE): while it is held, whoever opens the file to write it, or cuts it
/// short, waits in the system until it is given back; with O_NONBLOCK he is told to try again. After
/// break_seconds() it is taken by force, which is the end of what it promises. The signal that tells of it goes to a
/// thread of the lease that has it blocked; no handler is installed or called.
class FileLease {
 public:
  /// Null where the system grants none: the file is open for writing or another user's, it was changed since it was
  /// opened, or it lies on a file system where others may write it past a lease. `wanted` is called once at most, from
  /// the lease's thread, when somebody waits to write; when it returns, the lease is given back.
  static std::unique_ptr<FileLease> take(const File& file, std::function<void()> wanted);

  /// How long the system lets others wait; none where it does not say, no limit where it is 0.
  static std::optional<int> break_seconds();

  /// Gives it back. Waits for `wanted` where it is under way.
  ~FileLease();
  FileLease(const FileLease&) = delete;
  FileLease& operator=(const FileLease&) = delete;

 private:
  FileLease(int descriptor, std::function<void()> wanted);
  bool request() const;
  void watch();

  const int descriptor_;
  const std::function<void()> wanted_;
  std::atomic<bool> stopping_ = false;
  std::thread thread_;
};

} // namespace offload
