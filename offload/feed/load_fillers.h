#pragma once

#include <condition_variable>
#include <cstddef>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include <offload/feed/host_fill.h>
#include <offload/feed/loads.h>
#include <offload/feed/waiters.h>
#include <offload/io/file_reader.h>

namespace offload {

/// Threads that bring the bytes of loads to where they are wanted, piece by piece, from memory and from a file. They
/// take the pieces of whatever load is open: nobody waits for the slowest. One thread opens loads, and awaits them.
class LoadFillers {
 public:
  /// For `most_loads` that are open at once. `reader` is null when nothing lies in a file; `fill`, when there is one,
  /// is waited for; copies of what the page cache has are left to `waiters` where they may work. All of them outlive
  /// this.
  LoadFillers(int threads, std::size_t most_loads, FileReader* reader, HostFill* fill, Waiters& waiters);
  ~LoadFillers() { stop(); }
  LoadFillers(const LoadFillers&) = delete;
  LoadFillers& operator=(const LoadFillers&) = delete;

  /// Allocates nothing, and so does not fail.
  void open(const std::shared_ptr<Load>& load);

  /// Until all pieces of `load` are there, or have failed: see Load::failure.
  void await_filled(const Load& load);

  /// Whoever opened loads has awaited them.
  void stop();

 private:
  void run();
  std::shared_ptr<Load> next_open();
  void forget_taken();
  bool leave_to_waiters(const std::shared_ptr<Load>& load, const Piece& piece);
  void read(const std::shared_ptr<Load>& load, const Piece& piece);
  void copy(Load& load, const Piece& piece);

  FileReader* const reader_;
  HostFill* const fill_; // null when all has come
  Waiters& waiters_;

  std::mutex mutex_; // open_, stopping_, failures of loads
  std::condition_variable opened_;
  std::condition_variable filled_;
  std::vector<std::shared_ptr<Load>> open_; // with pieces that nobody has taken
  bool stopping_ = false;

  std::vector<std::thread> threads_;
};

} // namespace offload
