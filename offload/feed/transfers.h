#pragma once

#include <atomic>
#include <exception>
#include <list>
#include <memory>
#include <utility>
#include <vector>

#include <offload/feed/copies.h>

namespace offload {

/// A batch that is cut into transfers.
struct Job {
  Batch batch;
  std::vector<Copy> copies;
  std::size_t next = 0;   // the copy that is being cut, and
  std::uint64_t done = 0; // how far
  bool begun = false;     // its readers have been waited for
};

/// A part of a transfer: for one thread to copy, or for one read of the file.
struct Piece {
  std::byte* dst;
  HostPlace src; ///< of the piece alone; nowhere for what lies beyond a weight in the file
  std::uint64_t bytes;
};

/// Bytes on their way to one contiguous range of the ring: many threads bring them to `data`, or, without pieces, they
/// lie there page-locked.
struct Transfer {
  std::shared_ptr<Job> job;
  std::byte* data = nullptr;
  std::uint64_t place = 0;
  std::uint64_t bytes = 0;
  bool last = false; ///< of its batch
  HostPlace src;     ///< where there are no pieces
  std::vector<Piece> pieces;
  std::atomic<std::size_t> taken = 0;    ///< the next piece to fill; runs past the last, since each thread looks
  std::atomic<std::size_t> unfilled = 0; ///< pieces
  std::exception_ptr failure;            ///< of a piece
  std::atomic<bool> filled = false;      ///< all pieces are there, or have failed: see TransferFillers

  bool is_filled() const { return filled || pieces.empty(); }
  void await_filled() const { filled.wait(false); }
  void note_filled() {
    filled = true;
    filled.notify_all();
  }
};
using TransferList = std::list<std::shared_ptr<Transfer>>;

/// Cuts batches into transfers, in order. One thread calls.
class TransferCutter {
 public:
  explicit TransferCutter(HostPlaces host) : host_(std::move(host)) {}

  /// True while a batch is not cut to its end; the next begins after that.
  bool has_more() const { return job_ != nullptr; }

  /// Takes `batch`, unless it throws.
  void begin(Batch&& batch);

  /// The batch that is being cut, of which no more transfers will come; those that came share it.
  std::shared_ptr<Job> give_up() { return std::exchange(job_, nullptr); }

  /// Where in the ring the next transfer begins.
  std::uint64_t next_place() const { return job_->copies[job_->next].place + job_->done; }

  /// The next transfer, of at most `room` bytes, which are brought to `to`; or, of any size, one that lies page-locked.
  std::shared_ptr<Transfer> cut(std::byte* to, std::uint64_t room);

 private:
  void cut_pieces(Job& job, Transfer& transfer, std::uint64_t room) const;

  const HostPlaces host_;
  std::shared_ptr<Job> job_;
};

} // namespace offload
