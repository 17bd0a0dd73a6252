#include <offload/feed/load_fillers.h>

#include <cstring>
#include <string>
#include <utility>

#include <offload/core/start_thread.h>
#include <offload/error.h>

namespace offload {

LoadFillers::LoadFillers(FillSources sources, std::function<void(Load& load)> on_filled)
    : sources_(sources), on_filled_(std::move(on_filled)) {
  try {
    for (int i = 0; i < sources.threads; ++i) {
      threads_.push_back(start_thread("staging", [this] { run(); }));
    }
  } catch (...) {
    stop();
    throw;
  }
}

void LoadFillers::open(LoadList& loads) {
  {
    const Lock lock(mutex_);
    drop_taken();
    open_.splice(open_.end(), loads);
  }
  opened_.notify_all();
}

void LoadFillers::stop() {
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
    if (piece.src.in_file()) {
      read(load, piece);
    } else {
      copy(load, piece);
    }
  }
}

/// A load with pieces that nobody has taken; waits for one. Null when all is over.
std::shared_ptr<Load> LoadFillers::next_open() {
  const Lock lock(mutex_);
  while (true) {
    drop_taken();
    if (!open_.empty()) {
      return open_.front();
    }
    if (stopping_) {
      return nullptr;
    }
    opened_.wait(mutex_);
  }
}

void LoadFillers::drop_taken() {
  while (!open_.empty() && open_.front()->taken >= open_.front()->pieces.size()) {
    open_.pop_front();
  }
}

/// Ends on a thread of the reader, or here.
void LoadFillers::read(const std::shared_ptr<Load>& load, const Piece& piece) {
  try {
    sources_.reader->read(piece.dst, piece.src.offset, piece.src.bytes, [this, load](const std::string& error) {
      end(load, error.empty() ? nullptr : failure_of<ArchiveError>(error));
    });
  } catch (...) { // not begun with, for lack of memory
    end(load, std::current_exception());
  }
}

void LoadFillers::copy(const std::shared_ptr<Load>& load, const Piece& piece) {
  std::exception_ptr failure;
  try {
    if (sources_.fill && piece.src.memory) {
      sources_.fill->await_bytes(piece.src.memory + piece.bytes);
    }
    if (piece.src.memory) { // else it lies beyond the weight in the file
      std::memcpy(piece.dst, piece.src.memory, piece.bytes);
    }
  } catch (...) {
    failure = std::current_exception();
  }
  end(load, failure);
}

void LoadFillers::end(const std::shared_ptr<Load>& load, std::exception_ptr failure) {
  if (failure) {
    const Lock lock(mutex_);
    load->failure = std::move(failure);
  }
  if (--load->unfilled == 0) {
    on_filled_(*load);
  }
}

} // namespace offload
