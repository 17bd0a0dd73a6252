#include <offload/device/host_link.h>

#include <chrono>
#include <cstring>
#include <deque>
#include <thread>

#include <offload/core/mutex.h>
#include <offload/core/start_thread.h>

namespace offload {

namespace {

/// The point after the first `copies` copies; 0 is reached from the start.
struct CopyCount final : Fence {
  CopyCount(int channel, std::uint64_t n) : Fence(channel), copies(n) {}
  const std::uint64_t copies;
};

class HostLink final : public Link {
 public:
  HostLink() : worker_(start_thread("copies within the host", [this] { run(); })) {}

  ~HostLink() override {
    {
      const Lock lock(mutex_);
      stopping_ = true;
    }
    changed_.notify_all();
    worker_.join();
  }

  void wait(const Fence&) override {} // a host lane has done what it enqueued
  void record_now(const Fence&) override {}
  FencePtr record_used(int lane) override { return std::make_shared<CopyCount>(lane, 0); }

  FencePtr record_arrived() override {
    const Lock lock(mutex_);
    return std::make_shared<CopyCount>(Fence::of_link(), enqueued_);
  }

  void wait_arrived(int, const Fence& arrived) override {
    const Lock lock(mutex_);
    if (is_done(arrived)) {
      return;
    }
    const auto begin = std::chrono::steady_clock::now();
    wait_until_done(arrived);
    stall_us_ += std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - begin).count();
  }

  bool reached(const Fence& arrived) override {
    const Lock lock(mutex_);
    return is_done(arrived);
  }

  void synchronize(const Fence& fence) override {
    const Lock lock(mutex_);
    wait_until_done(fence);
  }

  void note_thread_wait(double us) override {
    const Lock lock(mutex_);
    stall_us_ += us;
  }

  double stall_us() override {
    const Lock lock(mutex_);
    return stall_us_;
  }

 protected:
  void enqueue_copy(void* dst, const void* src, std::size_t bytes) override {
    {
      const Lock lock(mutex_);
      copies_.push_back({dst, src, bytes});
      ++enqueued_;
    }
    changed_.notify_all();
  }

 private:
  struct Copy {
    void* dst;
    const void* src;
    std::size_t bytes;
  };

  bool is_done(const Fence& fence) const OFFLOAD_REQUIRES(mutex_) {
    return done_ >= static_cast<const CopyCount&>(fence).copies;
  }

  void wait_until_done(const Fence& fence) OFFLOAD_REQUIRES(mutex_) {
    changed_.wait(mutex_, [&]() OFFLOAD_REQUIRES(mutex_) { return is_done(fence); });
  }

  void run() {
    const Lock lock(mutex_);
    while (true) {
      changed_.wait(mutex_, [&]() OFFLOAD_REQUIRES(mutex_) { return stopping_ || !copies_.empty(); });
      if (copies_.empty()) {
        return;
      }
      const Copy copy = copies_.front();
      copies_.pop_front();
      {
        const Unlock unlocked(mutex_);
        std::memcpy(copy.dst, copy.src, copy.bytes);
      }
      ++done_;
      changed_.notify_all();
    }
  }

  Mutex mutex_;
  Condition changed_;
  std::deque<Copy> copies_ OFFLOAD_GUARDED_BY(mutex_);
  std::uint64_t enqueued_ OFFLOAD_GUARDED_BY(mutex_) = 0;
  std::uint64_t done_ OFFLOAD_GUARDED_BY(mutex_) = 0;
  double stall_us_ OFFLOAD_GUARDED_BY(mutex_) = 0;
  bool stopping_ OFFLOAD_GUARDED_BY(mutex_) = false;
  std::thread worker_;
};

} // namespace

std::unique_ptr<Link> make_host_link() { return std::make_unique<HostLink>(); }

} // namespace offload
