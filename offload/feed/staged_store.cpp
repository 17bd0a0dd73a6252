#include <algorithm>
#include <atomic>
#include <deque>
#include <memory>
#include <string>
#include <thread>
#include <utility>

#include <offload/core/mutex.h>
#include <offload/core/start_thread.h>
#include <offload/error.h>
#include <offload/feed/stores.h>
#include <offload/feed/transfer_fillers.h>
#include <offload/feed/transfers.h>

namespace offload {

namespace {

/// One issuing thread takes batches in order, cuts them into transfers, and keeps as many transfers filling as there
/// are free buffers, over the borders of batches; filling threads take pieces of whatever transfer is open. Nobody
/// waits at a barrier for the slowest thread.
class StagedStore final : public Store {
 public:
  StagedStore(Link& link, HostPlaces host, std::byte* ring, StagingBuffers staging, FillSources sources)
      : link_(link),
        ring_(ring),
        staging_(staging),
        fill_(sources.fill),
        fillers_(sources, [this](Transfer& transfer) { note_filled(transfer); }),
        cutter_(std::move(host)),
        sent_(staging.count) {
    issuer_ = start_thread("staging", [this] { run(); });
  }

  ~StagedStore() override { stop(); }

  /// The copies may be enqueued much later: by then lanes are farther, and must not be waited for that far.
  void issue(Batch batch) override {
    try {
      settle_readers(link_, batch);
      {
        const Lock lock(mutex_);
        batches_.push_back(std::move(batch));
        ++pending_;
      }
      work_.notify_one();
    } catch (const std::exception& error) {
      fail(link_, batch, error);
      finish(link_, batch);
    }
  }

  void drain() override {
    const Lock lock(mutex_);
    drained_.wait(mutex_, [&]() OFFLOAD_REQUIRES(mutex_) { return pending_ == 0; });
  }

  void stop() override {
    {
      const Lock lock(mutex_);
      stopping_ = true;
    }
    work_.notify_all();
    if (issuer_.joinable()) {
      issuer_.join();
    }
    fillers_.stop();
  }

 private:
  void run() {
    while (true) {
      if (!transfers_.empty() && is_filled(*transfers_.front())) {
        send_oldest();
      } else if (may_open() && open_transfer()) {
        continue;
      } else if (!transfers_.empty()) {
        await_filled(*transfers_.front());
      } else if (!await_work()) {
        break;
      } else if (sent_[next_buffer_]) {
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

  void note_filled(Transfer& transfer) {
    const Lock lock(mutex_);
    transfer.filled = true;
    filled_.notify_one();
  }

  bool is_filled(const Transfer& transfer) {
    const Lock lock(mutex_);
    return transfer.filled || transfer.pieces.empty();
  }

  void await_filled(const Transfer& transfer) {
    const Lock lock(mutex_);
    filled_.wait(mutex_, [&]() OFFLOAD_REQUIRES(mutex_) { return transfer.filled; });
  }

  /// False when there is none and will be none.
  bool await_work() {
    const Lock lock(mutex_);
    work_.wait(mutex_, [&]() OFFLOAD_REQUIRES(mutex_) { return stopping_ || cutter_.has_more() || !batches_.empty(); });
    return cutter_.has_more() || !batches_.empty();
  }

  /// True when the next staging buffer in turn is free: neither being filled nor, as far as can be seen without a wait,
  /// being read by the link.
  bool may_open() {
    if (transfers_.size() >= sent_.size()) {
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

  /// Cuts the next transfer from the batches that wait, and lets the filling threads have its pieces. False when none
  /// waits.
  bool open_transfer() {
    if (!cutter_.has_more()) {
      Batch batch;
      {
        const Lock lock(mutex_);
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
    try {
      if (!broken_.empty()) {
        throw Error(broken_);
      }
      TransferList sent_later(1);
      TransferList filled(1); // nothing is lost to lack of memory once it has been cut
      const auto transfer = cutter_.cut(staging_.data + next_buffer_ * staging_.buffer_bytes, staging_.buffer_bytes);
      sent_later.front() = transfer;
      filled.front() = transfer;
      transfers_.splice(transfers_.end(), sent_later);
      if (!transfer->pieces.empty()) {
        take_next_buffer();
        fillers_.open(filled);
      }
    } catch (const std::exception& error) {
      const std::shared_ptr<Job> job = cutter_.give_up(); // transfers of it that are open are not sent any more
      fail(link_, job->batch, error);
      end(job->batch);
    }
    return true;
  }

  void take_next_buffer() { next_buffer_ = (next_buffer_ + 1) % static_cast<int>(sent_.size()); }

  void send_oldest() {
    const std::shared_ptr<Transfer> transfer = std::move(transfers_.front());
    transfers_.pop_front();
    Job& job = *transfer->job;
    Arrival& arrival = *job.batch.arrival;
    if (arrival.failure.empty()) {
      try {
        if (transfer->failure) {
          std::rethrow_exception(transfer->failure);
        }
        if (!job.begun) {
          wait_for_readers(link_, job.batch);
        }
        if (fill_ && transfer->pieces.empty()) { // page-locked, and read where it is
          fill_->await_bytes(transfer->data + transfer->bytes);
        }
        link_.copy(ring_ + transfer->place, transfer->data, transfer->bytes);
        if (!transfer->pieces.empty()) {
          remember_sent((transfer->data - staging_.data) / staging_.buffer_bytes);
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

  /// The link reads the buffer from now on, until a fence. Where none can be had, nobody knows until when: then now is
  /// waited for, and where that can not be, no buffer is filled ever again.
  void remember_sent(std::size_t buffer) {
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
    const Lock lock(mutex_);
    --pending_;
    drained_.notify_all();
  }

  Link& link_;
  std::byte* const ring_;
  const StagingBuffers staging_;
  HostFill* const fill_; // null when all has come

  Mutex mutex_; // Transfer::filled, too
  Condition work_;
  Condition filled_;
  Condition drained_;
  std::deque<Batch> batches_ OFFLOAD_GUARDED_BY(mutex_);
  int pending_ OFFLOAD_GUARDED_BY(mutex_) = 0; // batches that have not ended
  bool stopping_ OFFLOAD_GUARDED_BY(mutex_) = false;

  TransferFillers fillers_;

  // The issuing thread's.
  TransferCutter cutter_;
  std::vector<FencePtr> sent_; // by buffer: after this the link has read it
  int next_buffer_ = 0;
  std::string broken_;     // why no buffer may be filled any more; empty while they may
  TransferList transfers_; // opened and not sent, oldest first

  std::thread issuer_;
};

} // namespace

int staging_threads() { return std::clamp<int>(static_cast<int>(std::thread::hardware_concurrency()) * 3 / 4, 1, 16); }

std::unique_ptr<Store> make_staged_store(Link& link, HostPlaces host, std::byte* ring, StagingBuffers staging,
                                         FillSources sources) {
  return std::make_unique<StagedStore>(link, std::move(host), ring, staging, sources);
}

} // namespace offload
