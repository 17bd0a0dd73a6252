#pragma once

#include <cstddef>
#include <cstdint>
#include <exception>
#include <numeric>
#include <utility>
#include <vector>

namespace offload {

/// Which pieces have come, which are to be read next, and what has come that nobody has been told of. Not synchronised;
/// allocates nothing once it is made.
class FillProgress {
 public:
  explicit FillProgress(std::size_t pieces) : there_(pieces), next_(pieces) {
    std::iota(next_.rbegin(), next_.rend(), std::size_t{0});
  }

  /// The first piece that is not there; the number of pieces when all are.
  std::size_t first_missing() const { return first_missing_; }
  bool all_there() const { return first_missing_ == there_.size(); }

  int in_flight() const { return in_flight_; }
  bool has_next() const { return !next_.empty(); }

  /// The next piece, which is in flight from now on: one that failed, or the first that nobody has begun to read.
  std::size_t begin_next() {
    ++in_flight_;
    const std::size_t piece = next_.back();
    next_.pop_back();
    return piece;
  }

  /// It is in flight no more: it is there, and `bytes` of it are to be told; or it failed, and is read again.
  void end_there(std::size_t piece, std::uint64_t bytes) {
    --in_flight_;
    unreported_ += bytes;
    there_[piece] = true;
    while (!all_there() && there_[first_missing_]) {
      ++first_missing_;
    }
  }
  void end_failed(std::size_t piece) {
    --in_flight_;
    next_.push_back(piece);
  }

  /// Bytes are told by one at a time, and by nobody while all have been.
  bool may_report() const { return unreported_ > 0 && !reporting_; }
  bool all_reported() const { return unreported_ == 0 && !reporting_; }

  /// How many bytes to tell now; whoever has told them ends the report.
  std::uint64_t begin_report() {
    reporting_ = true;
    return std::exchange(unreported_, 0);
  }
  void end_report() { reporting_ = false; }

 private:
  std::vector<bool> there_; // by piece
  std::size_t first_missing_ = 0;
  std::vector<std::size_t> next_; // neither there nor in flight, the next at the end
  int in_flight_ = 0;
  std::uint64_t unreported_ = 0; // bytes
  bool reporting_ = false;
};

/// What went wrong first, until it is cleared so that it can be tried again, and whether somebody has been told. Not
/// synchronised.
class FillFailure {
 public:
  bool any() const { return failure_ != nullptr; }
  bool reported() const { return reported_; }

  /// True when `failure` is the first, which is kept.
  bool record(std::exception_ptr failure) {
    if (any()) {
      return false;
    }
    failure_ = std::move(failure);
    return true;
  }

  /// Throws it.
  [[noreturn]] void report() {
    reported_ = true;
    std::rethrow_exception(failure_);
  }

  /// What nobody has been told of, or null: from now on nothing has gone wrong.
  std::exception_ptr clear() {
    const std::exception_ptr failure = std::exchange(failure_, nullptr);
    return std::exchange(reported_, false) ? nullptr : failure;
  }

 private:
  std::exception_ptr failure_;
  bool reported_ = false;
};

} // namespace offload
