#include <offload/feed/host_fill.h>

#include <algorithm>
#include <utility>

#include <offload/core/start_thread.h>
#include <offload/error.h>

namespace offload {

HostFill::HostFill(std::shared_ptr<FileReader> reader, const std::vector<Part>& parts, Callbacks callbacks, int threads)
    : callbacks_(std::move(callbacks)), reader_(std::move(reader)) {
  for (const Part& part : parts) {
    for (std::uint64_t done = 0; done < part.bytes; done += FileReader::kMostBytes) {
      pieces_.push_back({part.place + done, part.offset + done, std::min(FileReader::kMostBytes, part.bytes - done)});
    }
  }
  there_.resize(pieces_.size());
  again_.reserve(pieces_.size());
  preparation_ = callbacks_.prepare ? Preparation::wanted : Preparation::done;
  publish();
  try {
    for (int i = 0; i < threads; ++i) {
      {
        const Lock lock(mutex_);
        ++working_;
      }
      threads_.push_back(start_thread("reading weights", [this] { work(); }));
    }
  } catch (...) {
    stop();
    throw;
  }
}

HostFill::~HostFill() { stop(); }

void HostFill::stop() {
  {
    const Lock lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_all();
  for (std::thread& thread : threads_) {
    thread.join();
  }
  const Lock lock(mutex_);
  changed_.wait(mutex_, [&]() OFFLOAD_REQUIRES(mutex_) { return in_flight_ == 0; });
}

void HostFill::await_bytes(const std::byte* end) {
  if (is_there(end)) {
    return;
  }
  const Lock lock(mutex_);
  changed_.wait(mutex_, [&]() OFFLOAD_REQUIRES(mutex_) { return is_there(end) || failure_ || cancelled_; });
  if (is_there(end)) {
    return;
  }
  if (!failure_) {
    throw Error("the weights are not wanted any more");
  }
  reported_ = true;
  std::rethrow_exception(failure_);
}

void HostFill::retry() {
  if (all_there() && !refused_) {
    return;
  }
  std::exception_ptr untold;
  {
    const Lock lock(mutex_);
    if (failure_ && (reported_ || refused_)) {
      untold = reported_ ? nullptr : failure_;
      failure_ = nullptr;
      refused_ = false;
      wake_.notify_all();
    }
  }
  if (untold) {
    std::rethrow_exception(untold);
  }
}

void HostFill::cancel() {
  {
    const Lock lock(mutex_);
    cancelled_ = true;
  }
  changed_.notify_all();
}

/// Moves ready_ to where the first piece that is not there begins.
void HostFill::publish() {
  while (first_ < pieces_.size() && there_[first_]) {
    ++first_;
  }
  if (preparation_ == Preparation::done) {
    ready_ = first_ < pieces_.size() ? reinterpret_cast<std::uintptr_t>(pieces_[first_].place) : ~std::uintptr_t{0};
  }
  changed_.notify_all();
}

bool HostFill::finished() const {
  return first_ == pieces_.size() && preparation_ == Preparation::done && unreported_ == 0 && !reporting_;
}

bool HostFill::has_work() const {
  return may_report() ||
         (!failure_ && (preparation_ == Preparation::wanted || !again_.empty() || next_ < pieces_.size()));
}

void HostFill::work() {
  std::shared_ptr<FileReader> gone; // with the last thread, and what it holds: without the mutex
  const Lock lock(mutex_);
  while (true) {
    wake_.wait(mutex_, [&]() OFFLOAD_REQUIRES(mutex_) { return stopping_ || finished() || has_work(); });
    if (stopping_ || finished()) {
      if (--working_ == 0 && finished()) {
        gone = std::move(reader_);
      }
      return;
    }
    if (may_report()) {
      reporting_ = true;
      const auto thrown = call([&, bytes = std::exchange(unreported_, 0)] { callbacks_.on_progress(bytes); });
      refused_ = thrown && thrown == failure_;
      reporting_ = false;
    } else if (preparation_ == Preparation::wanted) {
      preparation_ = Preparation::under_way;
      preparation_ = call(callbacks_.prepare) ? Preparation::wanted : Preparation::done;
      publish();
    } else {
      std::size_t piece = next_;
      if (again_.empty()) {
        ++next_;
      } else {
        piece = again_.back();
        again_.pop_back();
      }
      ++in_flight_;
      FileReader& reader = *reader_;
      const Unlock unlocked(mutex_);
      read(reader, piece);
    }
    wake_.notify_all(); // it may have been the last that was missing
  }
}

/// Without the lock. What it threw.
std::exception_ptr HostFill::call(const std::function<void()>& callback) {
  std::exception_ptr failure;
  try {
    const Unlock unlocked(mutex_);
    callback();
  } catch (const std::exception&) {
    failure = std::current_exception();
  } catch (...) {
    failure = failure_of<Error>("a callback threw what is no std::exception");
  }
  if (failure) {
    record_failure(failure);
  }
  return failure;
}

void HostFill::record_failure(std::exception_ptr failure) {
  if (!failure_) {
    failure_ = std::move(failure);
    reported_ = false;
  }
  changed_.notify_all();
}

void HostFill::read(FileReader& reader, std::size_t piece) {
  const Part& part = pieces_[piece];
  try {
    reader.read(part.place, part.offset, part.bytes, [this, piece](const std::string& error) {
      end(piece, error.empty() ? nullptr : failure_of<ArchiveError>(error));
    });
  } catch (...) { // not begun with
    end(piece, std::current_exception());
  }
}

/// On a thread of the reader, or on ours.
void HostFill::end(std::size_t piece, std::exception_ptr failure) {
  const Lock lock(mutex_);
  --in_flight_;
  if (failure) {
    again_.push_back(piece);
    record_failure(std::move(failure));
  } else {
    there_[piece] = true;
    unreported_ += callbacks_.on_progress ? pieces_[piece].bytes : 0;
    publish();
  }
  wake_.notify_all();
}

} // namespace offload
