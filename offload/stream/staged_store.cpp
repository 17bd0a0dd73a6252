#include <emmintrin.h>

#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <mutex>
#include <thread>

#include <offload/bytes.h>
#include <offload/stream/copies.h>
#include <offload/stream/store.h>

namespace offload {

void copy_past_cache(std::byte* dst, const std::byte* src, std::size_t bytes) {
  const std::size_t head = std::min<std::size_t>(bytes, -reinterpret_cast<std::uintptr_t>(dst) & 15);
  std::memcpy(dst, src, head);
  dst += head;
  src += head;
  bytes -= head;
  for (; bytes >= 64; bytes -= 64, dst += 64, src += 64) {
    const auto* from = reinterpret_cast<const __m128i*>(src);
    auto* to = reinterpret_cast<__m128i*>(dst);
    const __m128i a = _mm_loadu_si128(from);
    const __m128i b = _mm_loadu_si128(from + 1);
    const __m128i c = _mm_loadu_si128(from + 2);
    const __m128i d = _mm_loadu_si128(from + 3);
    _mm_stream_si128(to, a);
    _mm_stream_si128(to + 1, b);
    _mm_stream_si128(to + 2, c);
    _mm_stream_si128(to + 3, d);
  }
  std::memcpy(dst, src, bytes);
  _mm_sfence();
}

namespace {

/// One part of the memory that a staging buffer gathers, for one thread to copy.
constexpr std::uint64_t kPieceBytes = 512_KiB;

/// A batch on its way through the staging buffers.
struct Job {
  Job(Batch b, const HostBytes& host, const std::vector<bool>& direct)
      : batch(std::move(b)),
        copies(merge_neighbours(batch, host, [&](WeightId x, WeightId y) { return direct[x] == direct[y]; })) {}

  Batch batch;
  std::vector<Copy> copies;
  std::size_t next = 0;   // the copy that is being cut, and
  std::uint64_t done = 0; // how far
  bool begun = false;     // its readers have been waited for
};

/// Bytes on their way to one contiguous range of the ring: a staging buffer that many threads fill, or, without a
/// buffer, page-locked bytes that the link reads where they are.
struct Load {
  std::shared_ptr<Job> job;
  std::byte* data = nullptr;
  int buffer = -1;
  std::uint64_t place = 0;
  std::uint64_t bytes = 0;
  bool last = false; // of its batch
  int unfilled = 0;  // pieces; under the mutex of the pieces
};

struct Piece {
  std::byte* dst;
  const std::byte* src;
  std::uint64_t bytes;
  Load* load;
};

/// One issuing thread takes batches in order, cuts them into loads, and keeps as many loads filling as there are free
/// buffers, over the borders of batches; filling threads take pieces of whatever load is open. Nobody waits at a
/// barrier for the slowest thread.
class StagedStore final : public Store {
 public:
  StagedStore(Link& link, HostBytes host, std::vector<bool> direct, std::byte* ring, StagingBuffers staging,
              int threads)
      : link_(link),
        host_(std::move(host)),
        direct_(std::move(direct)),
        ring_(ring),
        staging_(staging),
        sent_(staging.count) {
    try {
      for (int i = 0; i < threads; ++i) {
        fillers_.emplace_back([this] { fill(); });
      }
      issuer_ = std::thread([this] { run(); });
    } catch (...) {
      stop();
      throw;
    }
  }

  ~StagedStore() override {
    drain();
    stop();
  }

  void issue(Batch batch) override {
    {
      const std::lock_guard lock(mutex_);
      batches_.push_back(std::move(batch));
      ++pending_;
    }
    work_.notify_one();
  }

  void wait_issued(const Arrival& arrival) override {
    std::unique_lock lock(mutex_);
    issued_.wait(lock, [&] { return arrival.issued.load(std::memory_order_acquire); });
  }

  void drain() override {
    std::unique_lock lock(mutex_);
    issued_.wait(lock, [&] { return pending_ == 0; });
    // What is still being read by the link must not be freed with the buffers.
    for (FencePtr& fence : sent_) {
      if (fence) {
        try {
          link_.synchronize(*fence);
        } catch (const std::exception&) { // a device that is gone reads nothing
        }
        fence.reset();
      }
    }
  }

 private:
  void stop() {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    {
      const std::lock_guard lock(pieces_mutex_);
      pieces_stopping_ = true;
    }
    work_.notify_all();
    pieces_ready_.notify_all();
    if (issuer_.joinable()) {
      issuer_.join();
    }
    for (std::thread& filler : fillers_) {
      filler.join();
    }
  }

  void run() {
    while (true) {
      if (!loads_.empty() && is_filled(*loads_.front())) {
        send_oldest();
      } else if (static_cast<int>(loads_.size()) < staging_.count && open_load()) {
        continue;
      } else if (!loads_.empty()) {
        send_oldest();
      } else {
        std::unique_lock lock(mutex_);
        work_.wait(lock, [&] { return stopping_ || !batches_.empty(); });
        if (batches_.empty()) {
          return;
        }
      }
    }
  }

  /// Cuts the next load from the batches that wait, and hands its pieces to the filling threads. False when none waits.
  bool open_load() {
    if (!cutting_) {
      const std::lock_guard lock(mutex_);
      if (batches_.empty()) {
        return false;
      }
      cutting_ = std::make_shared<Job>(std::move(batches_.front()), host_, direct_);
      batches_.pop_front();
    }
    Job& job = *cutting_;
    loads_.push_back(std::make_unique<Load>());
    Load& load = *loads_.back();
    load.job = cutting_;
    load.place = job.copies[job.next].place + job.done;
    std::vector<Piece> pieces;
    if (direct_[job.copies[job.next].first]) {
      load.data = const_cast<std::byte*>(job.copies[job.next].src);
      load.bytes = job.copies[job.next].bytes;
      ++job.next;
    } else {
      load.buffer = next_buffer();
      load.data = staging_.data + load.buffer * staging_.buffer_bytes;
      while (job.next < job.copies.size() && load.bytes < staging_.buffer_bytes) {
        const Copy& copy = job.copies[job.next];
        if (copy.place + job.done != load.place + load.bytes || direct_[copy.first]) {
          break;
        }
        const std::uint64_t bytes =
            std::min(std::min(copy.bytes - job.done, staging_.buffer_bytes - load.bytes), kPieceBytes);
        pieces.push_back({load.data + load.bytes, copy.src + job.done, bytes, &load});
        load.bytes += bytes;
        job.done += bytes;
        if (job.done == copy.bytes) {
          ++job.next;
          job.done = 0;
        }
      }
    }
    load.last = job.next == job.copies.size();
    if (load.last) {
      cutting_.reset();
    }
    {
      const std::lock_guard lock(pieces_mutex_);
      load.unfilled = static_cast<int>(pieces.size());
      pieces_.insert(pieces_.end(), pieces.begin(), pieces.end());
    }
    pieces_ready_.notify_all();
    return true;
  }

  void send_oldest() {
    const std::unique_ptr<Load> load = std::move(loads_.front());
    loads_.pop_front();
    {
      std::unique_lock lock(pieces_mutex_);
      filled_.wait(lock, [&] { return load->unfilled == 0; });
    }
    Job& job = *load->job;
    Arrival& arrival = *job.batch.arrival;
    if (arrival.failure.empty()) {
      try {
        if (!job.begun) {
          wait_for_readers(link_, job.batch);
        }
        link_.copy(ring_ + load->place, load->data, load->bytes);
        if (load->buffer >= 0) {
          sent_[load->buffer] = link_.record_arrived();
        }
      } catch (const std::exception& error) {
        fail(link_, job.batch, error);
      }
      job.begun = true;
    }
    if (load->last) {
      finish(link_, job.batch);
      {
        const std::lock_guard lock(mutex_);
        --pending_;
      }
      issued_.notify_all();
    }
  }

  /// The next staging buffer in turn, once the link has read what was in it.
  int next_buffer() {
    const int index = next_buffer_;
    next_buffer_ = (next_buffer_ + 1) % staging_.count;
    if (sent_[index]) {
      try {
        link_.synchronize(*sent_[index]);
      } catch (const std::exception&) { // the next command tells it, to whoever needs the bytes
      }
      sent_[index].reset();
    }
    return index;
  }

  void fill() {
    std::unique_lock lock(pieces_mutex_);
    while (true) {
      pieces_ready_.wait(lock, [&] { return pieces_stopping_ || !pieces_.empty(); });
      if (pieces_.empty()) {
        return;
      }
      const Piece piece = pieces_.front();
      pieces_.pop_front();
      lock.unlock();
      copy_past_cache(piece.dst, piece.src, piece.bytes);
      lock.lock();
      if (--piece.load->unfilled == 0) {
        filled_.notify_one();
      }
    }
  }

  bool is_filled(const Load& load) {
    const std::lock_guard lock(pieces_mutex_);
    return load.unfilled == 0;
  }

  Link& link_;
  const HostBytes host_;
  const std::vector<bool> direct_;
  std::byte* const ring_;
  const StagingBuffers staging_;

  // The issuing thread's; drain() reads `sent_` when that thread has nothing to do.
  std::vector<FencePtr> sent_; // by buffer: after this the link has read it
  int next_buffer_ = 0;
  std::shared_ptr<Job> cutting_;
  std::deque<std::unique_ptr<Load>> loads_; // opened and not sent, oldest first

  std::mutex mutex_; // batches_, pending_, stopping_
  std::condition_variable work_;
  std::condition_variable issued_;
  std::deque<Batch> batches_;
  int pending_ = 0;
  bool stopping_ = false;

  std::mutex pieces_mutex_;
  std::condition_variable pieces_ready_;
  std::condition_variable filled_;
  std::deque<Piece> pieces_;
  bool pieces_stopping_ = false;

  std::vector<std::thread> fillers_;
  std::thread issuer_;
};

} // namespace

std::unique_ptr<Store> make_staged_store(Link& link, HostBytes host, std::vector<bool> direct, std::byte* ring,
                                         StagingBuffers staging, int threads) {
  return std::make_unique<StagedStore>(link, std::move(host), std::move(direct), ring, staging, threads);
}

} // namespace offload
