#include <offload/io/disk.h>

#include <liburing.h>
#include <sys/uio.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <deque>
#include <thread>
#include <vector>

#include <offload/core/mutex.h>
#include <offload/core/start_thread.h>

namespace offload {

namespace {

struct Request {
  std::byte* dst;
  std::uint64_t offset;
  std::uint64_t bytes;
  Disk::Done done;
};

/// What both ways of reading share.
class FileDisk : public Disk {
 public:
  explicit FileDisk(std::shared_ptr<const File> file) : file_(std::move(file)) {}

  std::int64_t read_cached(std::byte* dst, std::uint64_t offset, std::uint64_t bytes) override {
    const iovec into{dst, file_->cached_bytes(offset, bytes).value_or(bytes)};
    if (into.iov_len == 0) {
      return 0;
    }
    const ssize_t got = preadv2(file_->descriptor(), &into, 1, static_cast<off_t>(offset), RWF_NOWAIT);
    // Gone meanwhile, or a file system that can not tell: read as if it were not cached.
    return got >= 0 ? got : errno == EAGAIN || errno == EOPNOTSUPP || errno == EINTR ? 0 : -errno;
  }

 protected:
  int descriptor() const { return file_->direct_descriptor() >= 0 ? file_->direct_descriptor() : file_->descriptor(); }

  const std::shared_ptr<const File> file_;
};

class ThreadDisk final : public FileDisk {
 public:
  explicit ThreadDisk(std::shared_ptr<const File> file) : FileDisk(std::move(file)) {}

  /// Where the system refuses a thread, the destructor ends those before it: this object was complete when they began.
  ThreadDisk(std::shared_ptr<const File> file, int threads) : ThreadDisk(std::move(file)) {
    for (int i = 0; i < threads; ++i) {
      threads_.push_back(start_thread("reading a file", [this] { run(); }));
    }
  }

  ~ThreadDisk() override {
    {
      const Lock lock(mutex_);
      stopping_ = true;
    }
    changed_.notify_all();
    for (std::thread& thread : threads_) {
      thread.join();
    }
  }

  void start(std::byte* dst, std::uint64_t offset, std::uint64_t bytes, Done done) override {
    {
      const Lock lock(mutex_);
      requests_.push_back({dst, offset, bytes, std::move(done)});
    }
    changed_.notify_one();
  }

 private:
  void run() {
    const Lock lock(mutex_);
    while (true) {
      changed_.wait(mutex_, [&]() OFFLOAD_REQUIRES(mutex_) { return stopping_ || !requests_.empty(); });
      if (requests_.empty()) {
        return;
      }
      const Request request = std::move(requests_.front());
      requests_.pop_front();
      const Unlock unlocked(mutex_);
      const ssize_t got = pread(descriptor(), request.dst, request.bytes, static_cast<off_t>(request.offset));
      request.done(got < 0 ? -errno : got);
    }
  }

  Mutex mutex_;
  Condition changed_;
  std::deque<Request> requests_ OFFLOAD_GUARDED_BY(mutex_);
  bool stopping_ OFFLOAD_GUARDED_BY(mutex_) = false;
  std::vector<std::thread> threads_;
};

/// Requests go in under a mutex; one thread takes out what is done.
class RingDisk final : public FileDisk {
 public:
  /// Null when the kernel has no io_uring for this process.
  static std::unique_ptr<Disk> make(const std::shared_ptr<const File>& file, int reads_in_flight) {
    auto disk = std::make_unique<RingDisk>(file);
    if (io_uring_queue_init(static_cast<unsigned>(reads_in_flight) + 1, &disk->ring_, 0) != 0) {
      return nullptr;
    }
    disk->has_ring_ = true;
    disk->reaper_ = start_thread("reading a file", [d = disk.get()] { d->run(); });
    return disk;
  }

  explicit RingDisk(std::shared_ptr<const File> file) : FileDisk(std::move(file)) {}

  ~RingDisk() override {
    if (reaper_.joinable()) {
      submit(nullptr);
      reaper_.join();
    }
    if (has_ring_) {
      io_uring_queue_exit(&ring_);
    }
  }

  void start(std::byte* dst, std::uint64_t offset, std::uint64_t bytes, Done done) override {
    submit(std::make_unique<Request>(Request{dst, offset, bytes, std::move(done)}).release());
  }

 private:
  /// Takes the request, which comes back with its result. Null ends the thread, once all that was started is done.
  void submit(Request* request) {
    const Lock lock(mutex_);
    io_uring_sqe* entry = io_uring_get_sqe(&ring_); // there is room: each is submitted at once
    if (request) {
      ++in_flight_;
      io_uring_prep_read(entry, descriptor(), request->dst, static_cast<unsigned>(request->bytes), request->offset);
    } else {
      io_uring_prep_nop(entry);
    }
    io_uring_sqe_set_data(entry, request);
    while (io_uring_submit(&ring_) < 0) { // interrupted, or short of something: the entry stays in the queue
      const Unlock unlocked(mutex_);      // what has come back is taken meanwhile
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  }

  void run() {
    bool stopping = false;
    while (!stopping || in_flight_ > 0) {
      io_uring_cqe* entry = nullptr;
      if (io_uring_wait_cqe(&ring_, &entry) != 0) {
        continue; // interrupted
      }
      { // after what the one who submitted did: the kernel sees to that, but a sanitizer does not see the kernel
        const Lock lock(mutex_);
      }
      const std::unique_ptr<Request> request(static_cast<Request*>(io_uring_cqe_get_data(entry)));
      const std::int64_t result = entry->res;
      io_uring_cqe_seen(&ring_, entry);
      if (request) {
        request->done(result); // may start another
        --in_flight_;
      }
      stopping |= !request;
    }
  }

  Mutex mutex_; // of submitting
  io_uring ring_{};
  bool has_ring_ = false;
  std::atomic<int> in_flight_ = 0;
  std::thread reaper_;
};

} // namespace

std::unique_ptr<Disk> make_disk(std::shared_ptr<const File> file, int reads_in_flight, Reads reads) {
  if (reads == Reads::ring_or_threads) {
    if (auto disk = RingDisk::make(file, reads_in_flight)) {
      return disk;
    }
  }
  return std::make_unique<ThreadDisk>(std::move(file), reads_in_flight);
}

} // namespace offload
