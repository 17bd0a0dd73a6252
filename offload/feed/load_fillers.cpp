#include <offload/feed/load_fillers.h>

#include <cstring>
#include <string>

#include <offload/core/start_thread.h>
#include <offload/error.h>

namespace offload {

LoadFillers::LoadFillers(int threads, std::size_t most_loads, FileReader* reader, HostFill* fill, Waiters& waiters)
    : reader_(reader), fill_(fill), waiters_(waiters) {
  open_.reserve(most_loads);
  try {
    for (int i = 0; i < threads; ++i) {
      threads_.push_back(start_thread("staging", [this] { run(); }));
    }
  } catch (...) {
    stop();
    throw;
  }
}

void LoadFillers::open(const std::shared_ptr<Load>& load) {
  if (load->unfilled == 0) {
    return;
  }
  {
    const std::lock_guard lock(mutex_);
    forget_taken();
    open_.push_back(load);
  }
  opened_.notify_all();
}

void LoadFillers::await_filled(const Load& load) {
  std::unique_lock lock(mutex_);
  filled_.wait(lock, [&] { return load.unfilled == 0; });
}

void LoadFillers::stop() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  opened_.notify_all();
  for (std::thread& thread : threads_) {
    thread.join();
  }
  threads_.clear();
}

void LoadFillers::run() {
  std::shared_ptr<Load> load;
  while (true) {
    if (!load) {
      load = next_open();
      if (!load) {
        return;
      }
    }
    const std::size_t next = load->taken++;
    if (next >= load->pieces.size()) {
      load.reset();
      continue;
    }
    const Piece& piece = load->pieces[next];
    if (!piece.src.in_file()) {
      copy(*load, piece);
    } else if (!leave_to_waiters(load, piece)) {
      read(load, piece);
    }
  }
}

/// A load with pieces that nobody has taken; waits for one. Null when all is over.
std::shared_ptr<Load> LoadFillers::next_open() {
  std::unique_lock lock(mutex_);
  while (true) {
    forget_taken();
    if (!open_.empty()) {
      return open_.front();
    }
    if (stopping_) {
      return nullptr;
    }
    opened_.wait(lock);
  }
}

/// The caller holds the mutex.
void LoadFillers::forget_taken() {
  while (!open_.empty() && open_.front()->taken >= open_.front()->pieces.size()) {
    open_.erase(open_.begin());
  }
}

bool LoadFillers::leave_to_waiters(const std::shared_ptr<Load>& load, const Piece& piece) {
  if (!waiters_.work()) {
    return false;
  }
  try {
    if (!reader_->is_cached(piece.src.offset, piece.src.bytes)) {
      return false;
    }
    waiters_.leave([this, load, &piece] { read(load, piece); });
    return true;
  } catch (const std::exception&) { // no memory to say it with
    return false;
  }
}

/// Ends on a thread of the reader, or here. This is there until all loads are filled and the mutex is free.
void LoadFillers::read(const std::shared_ptr<Load>& load, const Piece& piece) {
  try {
    reader_->read(piece.dst, piece.src.offset, piece.src.bytes, [this, load](const std::string& error) {
      const std::lock_guard lock(mutex_);
      if (!error.empty()) {
        load->failure = failure_of<ArchiveError>(error);
      }
      if (--load->unfilled == 0) {
        filled_.notify_all();
      }
    });
  } catch (...) { // not begun with, for lack of memory
    const std::lock_guard lock(mutex_);
    load->failure = std::current_exception();
    if (--load->unfilled == 0) {
      filled_.notify_all();
    }
  }
}

void LoadFillers::copy(Load& load, const Piece& piece) {
  try {
    if (fill_ && piece.src.memory) {
      fill_->await_bytes(piece.src.memory + piece.bytes);
    }
    if (piece.src.memory) { // else it lies beyond the weight in the file
      std::memcpy(piece.dst, piece.src.memory, piece.bytes);
    }
  } catch (...) {
    const std::lock_guard lock(mutex_);
    load.failure = std::current_exception();
  }
  if (--load.unfilled == 0) {
    {
      const std::lock_guard lock(mutex_);
    } // nobody is between a look and a wait
    filled_.notify_all();
  }
}

} // namespace offload
