#pragma once

#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include <offload/core/mutex.h>
#include <offload/feed/stores.h>
#include <offload/feed/transfers.h>

namespace offload {

/// Threads that bring the bytes of transfers to where they are wanted, piece by piece, from memory and from files.
/// They take the pieces of whatever transfer is open: nobody waits for the slowest.
class TransferFillers {
 public:
  /// `on_filled` is called for each transfer when all of its pieces are there, or have failed (Transfer::failure), on
  /// the thread that brought the last: one of these or one of the reader, which uses nothing of this afterwards. It
  /// throws nothing.
  TransferFillers(int threads, std::function<void(Transfer& transfer)> on_filled);
  ~TransferFillers() { stop(); }
  TransferFillers(const TransferFillers&) = delete;
  TransferFillers& operator=(const TransferFillers&) = delete;

  /// Takes `transfers`, which have pieces, in their order. Allocates nothing, and so does not fail.
  void open(TransferList& transfers);

  /// All transfers that were opened have been filled.
  void stop();

 private:
  void run();
  std::shared_ptr<Transfer> next_open();
  void drop_taken() OFFLOAD_REQUIRES(mutex_);
  void fill(const std::shared_ptr<Transfer>& transfer, const Piece& piece);
  void end(Transfer& transfer, std::exception_ptr failure);

  const std::function<void(Transfer& transfer)> on_filled_;

  Mutex mutex_; // failures of transfers, too
  Condition opened_;
  TransferList open_ OFFLOAD_GUARDED_BY(mutex_); // with pieces that nobody has taken
  bool stopping_ OFFLOAD_GUARDED_BY(mutex_) = false;

  std::vector<std::thread> threads_;
};

} // namespace offload
