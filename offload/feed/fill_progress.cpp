#include <offload/feed/fill_progress.h>

namespace offload {

std::size_t FillProgress::begin_next() {
  ++in_flight_;
  if (again_.empty()) {
    return next_++;
  }
  const std::size_t piece = again_.back();
  again_.pop_back();
  return piece;
}

void FillProgress::end_there(std::size_t piece, std::uint64_t bytes) {
  --in_flight_;
  unreported_ += bytes;
  there_[piece] = true;
  while (first_missing_ < there_.size() && there_[first_missing_]) {
    ++first_missing_;
  }
}

void FillProgress::end_failed(std::size_t piece) {
  --in_flight_;
  again_.push_back(piece);
}

std::uint64_t FillProgress::begin_report() {
  reporting_ = true;
  return std::exchange(unreported_, 0);
}

bool FillFailure::record(std::exception_ptr failure) {
  if (failure_) {
    return false;
  }
  failure_ = std::move(failure);
  return true;
}

void FillFailure::report() {
  reported_ = true;
  std::rethrow_exception(failure_);
}

std::exception_ptr FillFailure::clear() {
  std::exception_ptr failure = std::exchange(failure_, nullptr);
  return std::exchange(reported_, false) ? nullptr : failure;
}

} // namespace offload
