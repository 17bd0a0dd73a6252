#include <algorithm>
#include <deque>
#include <exception>
#include <memory>
#include <thread>
#include <utility>

#include <offload/core/mutex.h>
#include <offload/core/start_thread.h>
#include <offload/feed/staging.h>
#include <offload/feed/stores.h>
#include <offload/feed/transfer_fillers.h>
#include <offload/feed/transfers.h>

namespace offload {

namespace {

/// Batches on their way to the issuing thread, which takes them, and ends them. Any thread puts, drains and closes.
class BatchQueue {
 public:
  /// Takes `batch`, unless it throws.
  void put(Batch&& batch) {
    {
      const Lock lock(mutex_);
      batches_.push_back(std::move(batch));
      ++pending_;
    }
    work_.notify_one();
  }

  /// False when there is none.
  bool take(Batch& batch) {
    const Lock lock(mutex_);
    if (batches_.empty()) {
      return false;
    }
    batch = std::move(batches_.front());
    batches_.pop_front();
    return true;
  }

  /// Waits for one to take. False when there is none and will be none.
  bool await_any() {
    const Lock lock(mutex_);
    work_.wait(mutex_, [&]() OFFLOAD_REQUIRES(mutex_) { return closed_ || !batches_.empty(); });
    return !batches_.empty();
  }

  /// One of those that were taken has been issued, or has failed.
  void note_ended() {
    const Lock lock(mutex_);
    --pending_;
    drained_.notify_all();
  }

  /// Waits until all that were put have ended.
  void drain() {
    const Lock lock(mutex_);
    drained_.wait(mutex_, [&]() OFFLOAD_REQUIRES(mutex_) { return pending_ == 0; });
  }

  /// No more will be put.
  void close() {
    const Lock lock(mutex_);
    closed_ = true;
    work_.notify_all();
  }

 private:
  Mutex mutex_;
  Condition work_;
  Condition drained_;
  std::deque<Batch> batches_ OFFLOAD_GUARDED_BY(mutex_);
  int pending_ OFFLOAD_GUARDED_BY(mutex_) = 0; // batches that have not ended
  bool closed_ OFFLOAD_GUARDED_BY(mutex_) = false;
};

/// One issuing thread takes batches in order, cuts them into transfers, and keeps as many transfers filling as there
/// are free buffers, over the borders of batches; filling threads take pieces of whatever transfer is open. Nobody
/// waits at a barrier for the slowest thread.
class StagedStore final : public Store {
 public:
  StagedStore(Link& link, HostPlaces host, std::byte* ring, StagingBuffers buffers, int threads)
      : link_(link),
        ring_(ring),
        fillers_(threads, [](Transfer& transfer) { transfer.note_filled(); }),
        staging_(link, buffers),
        cutter_(std::move(host)) {
    issuer_ = start_thread("staging", [this] { run(); });
  }

  ~StagedStore() override { stop(); }

  /// The copies may be enqueued much later: by then lanes are farther, and must not be waited for that far.
  void issue(Batch batch) override {
    try {
      record_readers(link_, batch);
      queue_.put(std::move(batch));
    } catch (const std::exception& error) {
      fail(link_, batch, error); // which it has not taken
      finish(link_, batch);
    }
  }

  void drain() override { queue_.drain(); }

  void stop() override {
    queue_.close();
    if (issuer_.joinable()) {
      issuer_.join();
    }
    fillers_.stop();
  }

 private:
  void run() {
    while (true) {
      const Transfer* oldest = transfers_.empty() ? nullptr : transfers_.front().get();
      if (oldest && oldest->is_filled()) {
        send_oldest();
      } else if (has_buffer() && open_transfer()) {
        continue;
      } else if (oldest) {
        oldest->await_filled();
      } else if (!cutter_.has_more() && !queue_.await_any()) {
        break;
      } else {
        staging_.await_next_read();
      }
    }
    staging_.await_all_read();
  }

  /// True when the next staging buffer is free: neither being filled nor being read by the link.
  bool has_buffer() { return transfers_.size() < staging_.count() && staging_.next_is_read(); }

  /// Cuts the next transfer from the batches that wait, and lets the filling threads have its pieces. False when none
  /// waits.
  bool open_transfer() {
    Batch batch;
    if (!cutter_.has_more() && !queue_.take(batch)) {
      return false;
    }
    try {
      if (!cutter_.has_more()) {
        cutter_.begin(std::move(batch));
      }
      TransferList sent_later(1);
      TransferList filled(1); // nothing is lost to lack of memory once it has been cut
      const auto transfer = cutter_.cut(staging_.next(), staging_.buffer_bytes());
      sent_later.front() = transfer;
      filled.front() = transfer;
      transfers_.splice(transfers_.end(), sent_later);
      if (!transfer->pieces.empty()) {
        staging_.take_next();
        fillers_.open(filled);
      }
    } catch (const std::exception& error) {
      const std::shared_ptr<Job> job = cutter_.give_up(); // transfers of it that are open are not sent any more
      const Batch& failed = job ? job->batch : batch;     // it has taken the batch, or thrown
      fail(link_, failed, error);
      end(failed);
    }
    return true;
  }

  void send_oldest() {
    const std::shared_ptr<Transfer> transfer = std::move(transfers_.front());
    transfers_.pop_front();
    Job& job = *transfer->job;
    if (job.batch.arrival->failure.empty()) {
      try {
        if (transfer->failure) {
          std::rethrow_exception(transfer->failure);
        }
        if (!job.begun) {
          wait_for_readers(link_, job.batch);
          mark_begin(link_, job.batch);
        }
        if (transfer->pieces.empty()) { // page-locked, and read where it is
          transfer->src.await_bytes(transfer->bytes);
        }
        link_.copy(ring_ + transfer->place, transfer->data, transfer->bytes);
        if (!transfer->pieces.empty()) {
          staging_.note_sent(transfer->data);
        }
      } catch (const std::exception& error) {
        fail(link_, job.batch, error);
      }
      job.begun = true;
    }
    if (transfer->last) {
      end(job.batch);
    }
  }

  void end(const Batch& batch) {
    finish(link_, batch);
    queue_.note_ended();
  }

  Link& link_;
  std::byte* const ring_;
  BatchQueue queue_;
  TransferFillers fillers_;

  // The issuing thread's.
  Staging staging_;
  TransferCutter cutter_;
  TransferList transfers_; // opened and not sent, oldest first

  std::thread issuer_;
};

} // namespace

int staging_threads() { return std::clamp<int>(static_cast<int>(std::thread::hardware_concurrency()) * 3 / 4, 1, 16); }

std::unique_ptr<Store> make_staged_store(Link& link, HostPlaces host, std::byte* ring, StagingBuffers buffers,
                                         int threads) {
  return std::make_unique<StagedStore>(link, std::move(host), ring, buffers, threads);
}

} // namespace offload
