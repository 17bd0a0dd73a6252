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
#include <offload/feed/fill_progress.h>
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
  HostFill(const std::shared_ptr<FileReader>& reader, const std::vector<Part>& parts, Callbacks callbacks, int threads);

  /// What has not come by now does not come.
  ~HostFill() { stop(); }
  HostFill(const HostFill&) = delete;
  HostFill& operator=(const HostFill&) = delete;

  /// Waits until all parts with places before `end` are there. Throws what went wrong, an ArchiveError where it is the
  /// file's: at once, until it is tried again.
  void await_bytes(const std::byte* end);

  /// Tries again what went wrong and has been told. Throws what `on_progress` threw, if nobody waited for anything
  /// since.
  void retry();

  /// True when nothing is read from the file any more.
  bool all_there() const { return ready_ == kAll; }

  /// From now on those who wait get an Error.
  void cancel();

 private:
  enum class Preparation { wanted, under_way, done };
  enum class State { filling, cancelled, stopping };

  void work(FileReader& reader);
  bool is_there(const std::byte* end) const { return reinterpret_cast<std::uintptr_t>(end) <= ready_.load(); }
  bool has_work() const OFFLOAD_REQUIRES(mutex_);
  bool is_over() const OFFLOAD_REQUIRES(mutex_);
  void prepare() OFFLOAD_REQUIRES(mutex_);
  void report() OFFLOAD_REQUIRES(mutex_);
  std::exception_ptr call(const std::function<void()>& callback) OFFLOAD_REQUIRES(mutex_);
  void read(FileReader& reader, std::size_t piece);
  void end(std::size_t piece, std::exception_ptr failure);
  bool record_failure(std::exception_ptr failure) OFFLOAD_REQUIRES(mutex_);
  void publish() OFFLOAD_REQUIRES(mutex_);
  void stop();

  static constexpr std::uintptr_t kAll = ~std::uintptr_t{0};

  const Callbacks callbacks_;
  const std::vector<Part> pieces_;        // of one read each
  std::atomic<std::uintptr_t> ready_ = 0; // all places before this address are there
  std::atomic<bool> refused_ = false;     // failure_ is what callbacks_.on_progress threw

  Mutex mutex_;
  Condition wake_;
  Condition changed_;
  FillProgress progress_ OFFLOAD_GUARDED_BY(mutex_); // of pieces_
  FillFailure failure_ OFFLOAD_GUARDED_BY(mutex_);   // no piece is begun while there is one
  Preparation preparation_ OFFLOAD_GUARDED_BY(mutex_);
  State state_ OFFLOAD_GUARDED_BY(mutex_) = State::filling;

  std::vector<std::thread> threads_; // own the reader: it goes with the last
};

} // namespace offload
