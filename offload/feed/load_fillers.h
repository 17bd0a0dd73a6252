#pragma once

#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include <offload/core/mutex.h>
#include <offload/feed/loads.h>
#include <offload/feed/stores.h>

namespace offload {

/// Threads that bring the bytes of loads to where they are wanted, piece by piece, from memory and from a file. They
/// take the pieces of whatever load is open: nobody waits for the slowest.
class LoadFillers {
 public:
  /// `on_filled` is called for each load when all of its pieces are there, or have failed (Load::failure), on the
  /// thread that brought the last: one of these or one of the reader, which uses nothing of this afterwards. It throws
  /// nothing.
  LoadFillers(FillSources sources, std::function<void(Load& load)> on_filled);
  ~LoadFillers() { stop(); }
  LoadFillers(const LoadFillers&) = delete;
  LoadFillers& operator=(const LoadFillers&) = delete;

  /// Takes `loads`, which have pieces, in their order. Allocates nothing, and so does not fail.
  void open(LoadList& loads);

  /// All loads that were opened have been filled.
  void stop();

 private:
  void run();
  std::shared_ptr<Load> next_open();
  void drop_taken() OFFLOAD_REQUIRES(mutex_);
  void read(const std::shared_ptr<Load>& load, const Piece& piece);
  void copy(const std::shared_ptr<Load>& load, const Piece& piece);
  void end(const std::shared_ptr<Load>& load, std::exception_ptr failure);

  const FillSources sources_;
  const std::function<void(Load& load)> on_filled_;

  Mutex mutex_; // failures of loads, too
  Condition opened_;
  LoadList open_ OFFLOAD_GUARDED_BY(mutex_); // with pieces that nobody has taken
  bool stopping_ OFFLOAD_GUARDED_BY(mutex_) = false;

  std::vector<std::thread> threads_;
};

} // namespace offload
