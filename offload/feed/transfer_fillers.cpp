#include <offload/feed/transfer_fillers.h>

#include <cstring>
#include <string>
#include <utility>

#include <offload/core/start_thread.h>
#include <offload/error.h>

namespace offload {

TransferFillers::TransferFillers(FillSources sources, std::function<void(Transfer& transfer)> on_filled)
    : sources_(sources), on_filled_(std::move(on_filled)) {
  try {
    for (int i = 0; i < sources.threads; ++i) {
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
      const Piece& piece = transfer->pieces[next];
      if (piece.src.in_file()) {
        read(transfer, piece);
      } else {
        copy(transfer, piece);
      }
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
void TransferFillers::read(const std::shared_ptr<Transfer>& transfer, const Piece& piece) {
  try {
    sources_.reader->read(piece.dst, piece.src.offset, piece.src.bytes, [this, transfer](const std::string& error) {
      end(transfer, error.empty() ? nullptr : failure_of<ArchiveError>(error));
    });
  } catch (...) { // not begun with, for lack of memory
    end(transfer, std::current_exception());
  }
}

void TransferFillers::copy(const std::shared_ptr<Transfer>& transfer, const Piece& piece) {
  std::exception_ptr failure;
  try {
    if (piece.src.memory) { // else it lies beyond the weight in the file
      if (sources_.fill) {
        sources_.fill->await_bytes(piece.src.memory + piece.bytes);
      }
      std::memcpy(piece.dst, piece.src.memory, piece.bytes);
    }
  } catch (...) {
    failure = std::current_exception();
  }
  end(transfer, failure);
}

void TransferFillers::end(const std::shared_ptr<Transfer>& transfer, std::exception_ptr failure) {
  if (failure) {
    const Lock lock(mutex_);
    transfer->failure = std::move(failure);
  }
  if (--transfer->unfilled == 0) {
    on_filled_(*transfer);
  }
}

} // namespace offload
