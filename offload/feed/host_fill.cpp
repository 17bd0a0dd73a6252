#include <offload/feed/host_fill.h>

#include <algorithm>
#include <utility>

#include <offload/core/start_thread.h>
#include <offload/error.h>

namespace offload {

namespace {

std::vector<HostFill::Part> cut_to_reads(const std::vector<HostFill::Part>& parts) {
  std::vector<HostFill::Part> pieces;
  for (const HostFill::Part& part : parts) {
    for (std::uint64_t done = 0; done < part.bytes; done += FileReader::kMostBytes) {
      pieces.push_back({part.place + done, part.offset + done, std::min(FileReader::kMostBytes, part.bytes - done)});
    }
  }
  return pieces;
}

} // namespace

HostFill::HostFill(const std::shared_ptr<FileReader>& reader, const std::vector<Part>& parts, Callbacks callbacks,
                   int threads)
    : callbacks_(std::move(callbacks)),
      pieces_(cut_to_reads(parts)),
      progress_(pieces_.size()),
      preparation_(callbacks_.prepare ? Preparation::wanted : Preparation::done) {
  publish();
  try {
    for (int i = 0; i < threads; ++i) {
      threads_.push_back(start_thread("reading weights", [this, reader] { work(*reader); }));
    }
  } catch (...) {
    stop();
    throw;
  }
}

void HostFill::stop() {
  {
    const Lock lock(mutex_);
    state_ = State::stopping;
  }
  wake_.notify_all();
  for (std::thread& thread : threads_) {
    thread.join();
  }
}

void HostFill::await_bytes(const std::byte* end) {
  if (is_there(end)) {
    return;
  }
  const Lock lock(mutex_);
  changed_.wait(mutex_,
                [&]() OFFLOAD_REQUIRES(mutex_) { return is_there(end) || failure_.any() || state_ != State::filling; });
  if (is_there(end)) {
    return;
  }
  if (failure_.any()) {
    failure_.report();
  }
  throw Error("the weights are not wanted any more");
}

void HostFill::retry() {
  if (all_there() && !refused_) {
    return;
  }
  const Lock lock(mutex_);
  if (!failure_.reported() && !refused_) {
    return;
  }
  refused_ = false;
  wake_.notify_all();
  if (const auto untold = failure_.clear()) {
    std::rethrow_exception(untold);
  }
}

void HostFill::cancel() {
  const Lock lock(mutex_);
  state_ = State::cancelled;
  changed_.notify_all();
}

/// Moves ready_ to where the first piece that is not there begins.
void HostFill::publish() {
  if (preparation_ == Preparation::done) {
    ready_ = progress_.all_there() ? kAll : reinterpret_cast<std::uintptr_t>(pieces_[progress_.first_missing()].place);
  }
  changed_.notify_all();
}

/// Nothing is read, and nothing will be.
bool HostFill::is_over() const {
  if (state_ == State::stopping) {
    return progress_.in_flight() == 0;
  }
  return progress_.all_there() && preparation_ == Preparation::done && progress_.all_reported();
}

bool HostFill::has_work() const {
  return state_ != State::stopping &&
         (progress_.may_report() || (!failure_.any() && (preparation_ == Preparation::wanted || progress_.has_next())));
}

void HostFill::work(FileReader& reader) {
  const Lock lock(mutex_);
  while (true) {
    wake_.wait(mutex_, [&]() OFFLOAD_REQUIRES(mutex_) { return is_over() || has_work(); });
    if (is_over()) {
      return;
    }
    if (progress_.may_report()) {
      report();
    } else if (preparation_ == Preparation::wanted) {
      prepare();
    } else {
      const std::size_t piece = progress_.begin_next();
      const Unlock unlocked(mutex_);
      read(reader, piece);
    }
    wake_.notify_all(); // it may have been the last that was missing
  }
}

void HostFill::report() {
  const std::uint64_t bytes = progress_.begin_report();
  auto thrown = call([&] { callbacks_.on_progress(bytes); });
  if (thrown && record_failure(std::move(thrown))) {
    refused_ = true;
  }
  progress_.end_report();
}

void HostFill::prepare() {
  preparation_ = Preparation::under_way;
  auto thrown = call(callbacks_.prepare);
  preparation_ = thrown ? Preparation::wanted : Preparation::done;
  if (thrown) {
    record_failure(std::move(thrown));
  }
  publish();
}

/// Without the lock. What it threw.
std::exception_ptr HostFill::call(const std::function<void()>& callback) {
  try {
    const Unlock unlocked(mutex_);
    callback();
    return nullptr;
  } catch (const std::exception&) {
    return std::current_exception();
  } catch (...) {
    return failure_of<Error>("a callback threw what is no std::exception");
  }
}

/// True when it is what those who wait are told.
bool HostFill::record_failure(std::exception_ptr failure) {
  changed_.notify_all();
  return failure_.record(std::move(failure));
}

void HostFill::read(FileReader& reader, std::size_t piece) {
  const Part& part = pieces_[piece];
  try {
    reader.read(part.place, part.offset, part.bytes,
                [this, piece](std::exception_ptr failure) { end(piece, std::move(failure)); });
  } catch (...) { // not begun with
    end(piece, std::current_exception());
  }
}

/// On a thread of the reader, or on ours.
void HostFill::end(std::size_t piece, std::exception_ptr failure) {
  const Lock lock(mutex_);
  if (failure) {
    progress_.end_failed(piece);
    record_failure(std::move(failure));
  } else {
    progress_.end_there(piece, callbacks_.on_progress ? pieces_[piece].bytes : 0);
    publish();
  }
  wake_.notify_all();
}

} // namespace offload
