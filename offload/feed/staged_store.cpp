#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>

#include <offload/core/start_thread.h>
#include <offload/error.h>
#include <offload/feed/cached_weights.h>
#include <offload/feed/load_fillers.h>
#include <offload/feed/loads.h>
#include <offload/feed/stores.h>
#include <offload/feed/waiters.h>

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
        fill_(sources.fill),
        cached_(std::move(sources.window), host),
        waiters_(std::move(sources.team)),
        fillers_(threads, most_loads(staging), sources.reader, sources.fill, waiters_),
        cutter_(std::move(host), std::move(direct), ring, staging),
        sent_(staging.count) {
    loads_.reserve(most_loads(staging)); // nothing is lost to lack of memory later
    issuer_ = start_thread("staging", [this] { run(); });
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
    work_.notify_all();
    if (issuer_.joinable()) {
      issuer_.join();
    }
    fillers_.stop();
  }

 private:
  static std::size_t most_loads(const StagingBuffers& staging) {
    return std::max<std::size_t>(staging.count, kLoadsInPlace) + 1;
  }

  void run() {
    while (true) {
      if (!loads_.empty() && loads_.front()->unfilled == 0) {
        send_oldest();
      } else if (may_open() && open_load()) {
        continue;
      } else if (!loads_.empty()) {
        fillers_.await_filled(*loads_.front());
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
      Batch batch;
      {
        const std::lock_guard lock(mutex_);
        if (batches_.empty()) {
          return false;
        }
        batch = std::move(batches_.front());
        batches_.pop_front();
      }
      try {
        cutter_.begin(std::move(batch));
      } catch (const std::exception& error) {
        fail(link_, batch, error); // which it has not taken
        end(batch);
        return true;
      }
    }
    std::shared_ptr<Load> load;
    try {
      if (!broken_.empty()) {
        throw Error(broken_);
      }
      load = cutter_.cut(next_buffer_);
    } catch (const std::exception& error) {
      const std::shared_ptr<Job> job = cutter_.give_up(); // loads of it that are open are not sent any more
      fail(link_, job->batch, error);
      end(job->batch);
      return true;
    }
    if (load->buffer >= 0) {
      take_next_buffer();
    }
    if (overlaps_open(*load)) {
      held_back_ = std::move(load);
      return false;
    }
    open(load);
    return true;
  }

  void open(const std::shared_ptr<Load>& load) {
    loads_.push_back(load);
    ++pending_;
    fillers_.open(load);
  }

  void take_next_buffer() { next_buffer_ = (next_buffer_ + 1) % static_cast<int>(sent_.size()); }

  void send_oldest() {
    const std::shared_ptr<Load> load = loads_.front();
    loads_.erase(loads_.begin());
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
    if (--pending_ == 0) { // of a batch that was given up before this was filled
      waiters_.notify();
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

  Link& link_;
  std::byte* const ring_;
  HostFill* const fill_; // null when all has come
  CachedWeights cached_;
  Waiters waiters_; // for batches; copies of what the page cache has are left to them

  LoadFillers fillers_;

  // The issuing thread's.
  LoadCutter cutter_;
  std::vector<FencePtr> sent_; // by buffer: after this the link has read it
  int next_buffer_ = 0;
  std::string broken_;                       // why no buffer may be filled any more; empty while they may
  std::vector<std::shared_ptr<Load>> loads_; // opened and not sent, oldest first
  std::shared_ptr<Load> held_back_;          // cut, for a place that an open one still writes

  std::mutex mutex_; // batches_, stopping_
  std::condition_variable work_;
  std::deque<Batch> batches_;
  std::atomic<int> pending_ = 0; // batches, and loads that are open
  bool stopping_ = false;

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
