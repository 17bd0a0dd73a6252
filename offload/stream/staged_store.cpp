#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>

#include <offload/error.h>
#include <offload/stream/cached_weights.h>
#include <offload/stream/loads.h>
#include <offload/stream/start_thread.h>
#include <offload/stream/store.h>
#include <offload/stream/waiters.h>

namespace offload {

namespace {

/// Where no buffers limit what is under way: at most so many loads.
constexpr std::size_t kLoadsInPlace = 4;

/// One issuing thread takes batches in order, cuts them into loads, and keeps as many loads filling as there are free
/// buffers, over the borders of batches; filling threads take pieces of whatever load is open. Nobody waits at a
/// barrier for the slowest thread.
class StagedStore final : public Store {
 public:
  StagedStore(Link& link, HostPlaces host, std::vector<bool> direct, std::byte* ring, StagingBuffers staging,
              int threads, StagedSources sources)
      : link_(link),
        ring_(ring),
        reader_(sources.reader),
        fill_(sources.fill),
        cached_(std::move(sources.window), host),
        waiters_(std::move(sources.team)),
        cutter_(std::move(host), std::move(direct), ring, staging),
        sent_(staging.count) {
    try {
      for (int i = 0; i < threads; ++i) {
        fillers_.push_back(start_thread("staging", [this] { fill_loads(); }));
      }
      issuer_ = start_thread("staging", [this] { run(); });
    } catch (...) {
      stop();
      throw;
    }
  }

  ~StagedStore() override {
    drain();
    stop();
  }

  /// The copies may be enqueued much later: by then lanes are farther, and must not be waited for that far. What the
  /// window maps is there at once: to have a thread woken for it takes longer where all processors compute.
  void issue(Batch batch) override {
    try {
      cached_.take_from(batch, link_, ring_);
      if (!batch.fetches.empty()) {
        settle_readers(link_, batch);
        {
          const std::lock_guard lock(mutex_);
          batches_.push_back(std::move(batch));
          ++pending_;
        }
        work_.notify_one();
        return;
      }
    } catch (const std::exception& error) {
      fail(link_, batch, error);
    }
    finish(link_, batch);
    waiters_.notify();
  }

  void wait_issued(const Arrival& arrival) override {
    waiters_.await([&] { return arrival.issued.load(std::memory_order_acquire); });
  }

  void drain() override {
    waiters_.await([&] { return pending_.load(std::memory_order_acquire) == 0; });
  }

  const std::byte* outside_ring(WeightId weight) const override { return cached_.find(weight); }
  bool owns(const void* address) const override { return cached_.owns(address); }

  void stop() override {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    {
      const std::lock_guard lock(open_mutex_);
      fillers_stopping_ = true;
    }
    work_.notify_all();
    opened_.notify_all();
    if (issuer_.joinable()) {
      issuer_.join();
    }
    for (std::thread& filler : fillers_) {
      filler.join();
    }
    fillers_.clear();
  }

 private:
  void run() {
    while (true) {
      if (!loads_.empty() && loads_.front()->unfilled == 0) {
        send_oldest();
      } else if (may_open() && open_load()) {
        continue;
      } else if (!loads_.empty()) {
        await_filled(*loads_.front());
      } else if (!await_work()) {
        break;
      } else if (!cutter_.fills_in_place() && sent_[next_buffer_]) {
        await_buffer();
      }
    }
    // What is still being read by the link must not be freed with the buffers.
    for (std::size_t i = 0; i < sent_.size(); ++i, take_next_buffer()) {
      if (sent_[next_buffer_]) {
        await_buffer();
      }
    }
  }

  /// False when there is none and will be none.
  bool await_work() {
    std::unique_lock lock(mutex_);
    work_.wait(lock, [&] { return stopping_ || cutter_.has_more() || !batches_.empty(); });
    return cutter_.has_more() || !batches_.empty();
  }

  /// True when the next staging buffer in turn is free: neither being filled nor, as far as can be seen without a wait,
  /// being read by the link.
  bool may_open() {
    if (cutter_.fills_in_place()) {
      return held_back_ ? !overlaps_open(*held_back_) : loads_.size() < kLoadsInPlace;
    }
    if (loads_.size() >= sent_.size()) {
      return false;
    }
    if (sent_[next_buffer_] && link_.reached(*sent_[next_buffer_])) {
      sent_[next_buffer_].reset();
    }
    return !sent_[next_buffer_];
  }

  void await_buffer() {
    try {
      link_.synchronize(*sent_[next_buffer_]);
    } catch (const std::exception&) { // the next command tells it; a device that is gone reads nothing
    }
    sent_[next_buffer_].reset();
  }

  /// Where the ring is filled in place, loads are filled in any order: two for the same place must not be open at once.
  /// (What was prefetched and is not wanted any more may be on its way still.)
  bool overlaps_open(const Load& load) const {
    return cutter_.fills_in_place() &&
           std::any_of(loads_.begin(), loads_.end(), [&](const std::shared_ptr<Load>& other) {
             return load.place < other->place + other->bytes && other->place < load.place + load.bytes;
           });
  }

  /// Cuts the next load from the batches that wait, and lets the filling threads have its pieces. False when none
  /// waits, or when it has to wait for another.
  bool open_load() {
    if (held_back_) {
      open(std::exchange(held_back_, nullptr));
      return true;
    }
    if (!cutter_.has_more()) {
      const std::lock_guard lock(mutex_);
      if (batches_.empty()) {
        return false;
      }
      cutter_.begin(std::move(batches_.front()));
      batches_.pop_front();
    }
    if (!broken_.empty()) {
      const Batch batch = cutter_.give_up();
      fail(link_, batch, Error(broken_));
      end(batch);
      return true;
    }
    const std::shared_ptr<Load> load = cutter_.cut(next_buffer_);
    if (load->buffer >= 0) {
      take_next_buffer();
    }
    if (overlaps_open(*load)) {
      held_back_ = load;
      return false;
    }
    open(load);
    return true;
  }

  void open(const std::shared_ptr<Load>& load) {
    loads_.push_back(load);
    if (load->unfilled > 0) {
      {
        const std::lock_guard lock(open_mutex_);
        open_.push_back(load);
      }
      opened_.notify_all();
    }
  }

  void take_next_buffer() { next_buffer_ = (next_buffer_ + 1) % static_cast<int>(sent_.size()); }

  void await_filled(const Load& load) {
    std::unique_lock lock(open_mutex_);
    filled_.wait(lock, [&] { return load.unfilled == 0; });
  }

  void send_oldest() {
    const std::shared_ptr<Load> load = std::move(loads_.front());
    loads_.pop_front();
    Job& job = *load->job;
    Arrival& arrival = *job.batch.arrival;
    if (arrival.failure.empty()) {
      try {
        if (load->failure) {
          std::rethrow_exception(load->failure);
        }
        if (!job.begun) {
          wait_for_readers(link_, job.batch);
        }
        if (fill_ && load->pieces.empty()) { // page-locked, and read where it is
          fill_->await_bytes(load->data + load->bytes);
        }
        link_.copy(ring_ + load->place, load->data, load->bytes);
        if (load->buffer >= 0) {
          remember_sent(load->buffer);
        }
      } catch (const std::exception& error) {
        fail(link_, job.batch, error);
      }
      job.begun = true;
    }
    if (load->last) {
      end(job.batch);
    }
  }

  /// The link reads the buffer from now on, until a fence. Where none can be had, nobody knows until when: then now is
  /// waited for, and where that can not be, no buffer is filled ever again.
  void remember_sent(int buffer) {
    try {
      sent_[buffer] = link_.record_arrived();
    } catch (const std::exception& refused) {
      try {
        link_.synchronize(*link_.record_arrived());
      } catch (const std::exception&) {
        broken_ = refused.what();
      }
      throw;
    }
  }

  void end(const Batch& batch) {
    finish(link_, batch);
    --pending_;
    waiters_.notify();
  }

  void fill_loads() {
    std::shared_ptr<Load> load;
    while (true) {
      if (!load) {
        load = next_open();
        if (!load) {
          return;
        }
      }
      const std::size_t piece = load->taken++;
      if (piece >= load->pieces.size()) {
        load.reset();
        continue;
      }
      const Piece& part = load->pieces[piece];
      if (part.src.in_file()) {
        if (waiters_.work() && reader_->is_cached(part.src.offset, part.src.bytes)) {
          waiters_.leave([this, load, &part] { read(load, part); });
        } else {
          read(load, part);
        }
      } else if (part.src.memory) {
        copy(part, *load);
      } else {
        fill_one(*load); // what lies beyond the weight in the file
      }
    }
  }

  void copy(const Piece& piece, Load& load) {
    try {
      if (fill_) {
        fill_->await_bytes(piece.src.memory + piece.bytes);
      }
      std::memcpy(piece.dst, piece.src.memory, piece.bytes);
    } catch (...) {
      const std::lock_guard lock(open_mutex_);
      load.failure = std::current_exception();
    }
    fill_one(load);
  }

  void fill_one(Load& load) {
    if (--load.unfilled == 0) {
      {
        const std::lock_guard lock(open_mutex_);
      } // the issuer is not between its look and its wait
      filled_.notify_all();
    }
  }

  /// Ends on a thread of the reader, or here. The store is there until all loads are filled and the mutex is free.
  void read(const std::shared_ptr<Load>& load, const Piece& piece) {
    reader_->read(piece.dst, piece.src.offset, piece.src.bytes, [this, load](const std::string& error) {
      const std::lock_guard lock(open_mutex_);
      if (!error.empty()) {
        load->failure = std::make_exception_ptr(ArchiveError(error));
      }
      if (--load->unfilled == 0) {
        filled_.notify_all();
      }
    });
  }

  /// A load with pieces that nobody has taken; waits for one. Null when the store is being destroyed.
  std::shared_ptr<Load> next_open() {
    std::unique_lock lock(open_mutex_);
    while (true) {
      while (!open_.empty() && open_.front()->taken >= open_.front()->pieces.size()) {
        open_.pop_front();
      }
      if (!open_.empty()) {
        return open_.front();
      }
      if (fillers_stopping_) {
        return nullptr;
      }
      opened_.wait(lock);
    }
  }

  Link& link_;
  std::byte* const ring_;
  FileReader* const reader_;
  HostFill* const fill_; // null when all has come
  CachedWeights cached_;
  Waiters waiters_; // for batches; copies of what the page cache has are left to them

  // The issuing thread's.
  LoadCutter cutter_;
  std::vector<FencePtr> sent_; // by buffer: after this the link has read it
  int next_buffer_ = 0;
  std::string broken_;                      // why no buffer may be filled any more; empty while they may
  std::deque<std::shared_ptr<Load>> loads_; // opened and not sent, oldest first
  std::shared_ptr<Load> held_back_;         // cut, for a place that an open one still writes

  std::mutex mutex_; // batches_, stopping_
  std::condition_variable work_;
  std::deque<Batch> batches_;
  std::atomic<int> pending_ = 0; // batches
  bool stopping_ = false;

  std::mutex open_mutex_; // open_, fillers_stopping_, failures of loads
  std::condition_variable opened_;
  std::condition_variable filled_;
  std::deque<std::shared_ptr<Load>> open_; // with pieces that nobody has taken
  bool fillers_stopping_ = false;

  std::vector<std::thread> fillers_;
  std::thread issuer_;
};

} // namespace

int staging_threads() { return std::clamp<int>(static_cast<int>(std::thread::hardware_concurrency()) * 3 / 4, 1, 16); }

std::unique_ptr<Store> make_staged_store(Link& link, HostPlaces host, std::vector<bool> direct, std::byte* ring,
                                         StagingBuffers staging, int threads, StagedSources sources) {
  return std::make_unique<StagedStore>(link, std::move(host), std::move(direct), ring, staging, threads,
                                       std::move(sources));
}

} // namespace offload
