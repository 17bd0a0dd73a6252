#include <offload/feed/transfer_fillers.h>

#include <cstring>
#include <utility>

#include <offload/core/start_thread.h>

namespace offload {

TransferFillers::TransferFillers(int threads, std::function<void(Transfer& transfer)> on_filled)
    : on_filled_(std::move(on_filled)) {
  try {
    for (int i = 0; i < threads; ++i) {
      threads_.push_back(start_thread("filling buffers", [this] { run(); }));
    }
  } catch (...) {
    stop();
    throw;
  }
}

void TransferFillers::open(TransferList& transfers) {
  {
    const Lock lock(mutex_);
    drop_taken();
    open_.splice(open_.end(), transfers);
  }
  opened_.notify_all();
}

void TransferFillers::stop() {
  {
    const Lock lock(mutex_);
    stopping_ = true;
  }
  opened_.notify_all();
  for (std::thread& thread : threads_) {
    thread.join();
  }
  threads_.clear();
}

void TransferFillers::run() {
  while (const std::shared_ptr<Transfer> transfer = next_open()) {
    for (std::size_t next = transfer->taken++; next < transfer->pieces.size(); next = transfer->taken++) {
      fill(transfer, transfer->pieces[next]);
    }
  }
}

/// A transfer with pieces that nobody has taken; waits for one. Null when all is over.
std::shared_ptr<Transfer> TransferFillers::next_open() {
  const Lock lock(mutex_);
  opened_.wait(mutex_, [&]() OFFLOAD_REQUIRES(mutex_) {
    drop_taken();
    return stopping_ || !open_.empty();
  });
  return open_.empty() ? nullptr : open_.front();
}

void TransferFillers::drop_taken() {
  while (!open_.empty() && open_.front()->taken >= open_.front()->pieces.size()) {
    open_.pop_front();
  }
}

/// Ends on a thread of the reader, or here.
void TransferFillers::fill(const std::shared_ptr<Transfer>& transfer, const Piece& piece) {
  const HostPlace& src = piece.src;
  std::exception_ptr failure;
  try {
    if (src.in_file()) {
      src.source->reader->read(piece.dst, src.offset, src.bytes,
                               [this, transfer](std::exception_ptr thrown) { end(*transfer, std::move(thrown)); });
      return;
    }
    if (src.memory) { // else it lies beyond the weight in the file
      src.await_bytes(piece.bytes);
      std::memcpy(piece.dst, src.memory, piece.bytes);
    }
  } catch (...) {
    failure = std::current_exception();
  }
  end(*transfer, std::move(failure));
}

void TransferFillers::end(Transfer& transfer, std::exception_ptr failure) {
  if (failure) {
    const Lock lock(mutex_);
    transfer.failure = std::move(failure);
  }
  if (--transfer.unfilled == 0) {
    on_filled_(transfer);
  }
}

} // namespace offload
