#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include <offload/core/mutex.h>
#include <offload/io/file_reader.h>

namespace offload {

/// Brings weights from a file to their places in host memory, from the first place to the last, while those that are
/// there are used already. Any thread may call.
class HostFill {
 public:
  struct Part {
    std::byte* place;
    std::uint64_t offset; ///< in the file
    std::uint64_t bytes;
  };

  struct Callbacks {
    /// Called beside the reads; nothing is there before it has returned. What it throws is told to those who wait.
    std::function<void()> prepare;

    /// Told how many bytes more have come, one call at a time, also after somebody has used them. What it throws is
    /// told to those who wait, or to who retries.
    std::function<void(std::uint64_t bytes)> on_progress;
  };

  /// `parts` go to ascending places. Throws Error when the system refuses a thread.
  HostFill(std::shared_ptr<FileReader> reader, const std::vector<Part>& parts, Callbacks callbacks, int threads);

  /// What has not come by now does not come.
  ~HostFill();
  HostFill(const HostFill&) = delete;
  HostFill& operator=(const HostFill&) = delete;

  /// Waits until all parts with places before `end` are there. Throws what went wrong, an ArchiveError where it is the
  /// file's: at once, until it is tried again.
  void await_bytes(const std::byte* end);

  /// Tries again what went wrong and has been told. Throws what `on_progress` threw, if nobody waited for anything
  /// since.
  void retry();

  /// True when nothing is read from the file any more.
  bool all_there() const { return ready_ == ~std::uintptr_t{0}; }

  /// From now on those who wait get an Error.
  void cancel();

 private:
  enum class Preparation { wanted, under_way, done };

  void work();
  bool is_there(const std::byte* end) const { return reinterpret_cast<std::uintptr_t>(end) <= ready_.load(); }
  bool has_work() const OFFLOAD_REQUIRES(mutex_);
  bool may_report() const OFFLOAD_REQUIRES(mutex_) { return unreported_ > 0 && !reporting_; }
  bool finished() const OFFLOAD_REQUIRES(mutex_);
  std::exception_ptr call(const std::function<void()>& callback) OFFLOAD_REQUIRES(mutex_);
  void read(FileReader& reader, std::size_t piece);
  void end(std::size_t piece, std::exception_ptr failure);
  void record_failure(std::exception_ptr failure) OFFLOAD_REQUIRES(mutex_);
  void publish() OFFLOAD_REQUIRES(mutex_);
  void stop();

  std::vector<Part> pieces_; // of one read each
  const Callbacks callbacks_;
  std::atomic<std::uintptr_t> ready_ = 0; // all places before this address are there
  std::atomic<bool> refused_ = false;     // failure_ is what callbacks_.on_progress threw

  Mutex mutex_;
  Condition wake_;
  Condition changed_;
  std::shared_ptr<FileReader> reader_ OFFLOAD_GUARDED_BY(mutex_);
  std::vector<bool> there_ OFFLOAD_GUARDED_BY(mutex_);        // by piece
  std::size_t first_ OFFLOAD_GUARDED_BY(mutex_) = 0;          // that is not there
  std::size_t next_ OFFLOAD_GUARDED_BY(mutex_) = 0;           // that nobody has begun to read
  std::vector<std::size_t> again_ OFFLOAD_GUARDED_BY(mutex_); // failed; has room for all of them
  int in_flight_ OFFLOAD_GUARDED_BY(mutex_) = 0;
  int working_ OFFLOAD_GUARDED_BY(mutex_) = 0;              // threads
  std::uint64_t unreported_ OFFLOAD_GUARDED_BY(mutex_) = 0; // bytes that have come
  bool reporting_ OFFLOAD_GUARDED_BY(mutex_) = false;
  Preparation preparation_ OFFLOAD_GUARDED_BY(mutex_) = Preparation::wanted;
  std::exception_ptr failure_ OFFLOAD_GUARDED_BY(mutex_); // nothing is begun while there is one
  bool reported_ OFFLOAD_GUARDED_BY(mutex_) = false;
  bool cancelled_ OFFLOAD_GUARDED_BY(mutex_) = false;
  bool stopping_ OFFLOAD_GUARDED_BY(mutex_) = false;

  std::vector<std::thread> threads_;
};

} // namespace offload
