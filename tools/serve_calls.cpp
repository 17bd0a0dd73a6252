#include <tools/serve_calls.h>

#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <exception>
#include <future>
#include <optional>

namespace offload::tools {

struct CallThreads::Waiting {
  const Call& call;
  std::chrono::steady_clock::time_point since;
  std::promise<void> done;
};

CallThreads::CallThreads(int threads, std::size_t most_waiting, c10::Device device) : most_waiting_(most_waiting) {
  for (int i = 0; i < threads; ++i) {
    threads_.emplace_back([this, device] { work(device); });
  }
}

CallThreads::~CallThreads() {
  {
    const std::scoped_lock lock(mutex_);
    ended_ = true;
  }
  came_.notify_all();
  for (std::thread& thread : threads_) {
    thread.join();
  }
}

bool CallThreads::run(const Call& call) {
  Waiting waiting{call, std::chrono::steady_clock::now(), {}};
  std::future<void> done = waiting.done.get_future();
  {
    const std::scoped_lock lock(mutex_);
    if (queue_.size() + at_work_ >= most_waiting_ + threads_.size()) {
      return false;
    }
    queue_.push_back(&waiting);
  }
  came_.notify_one();
  done.get();
  return true;
}

std::size_t CallThreads::waiting() const {
  const std::scoped_lock lock(mutex_);
  return queue_.size();
}

std::size_t CallThreads::at_work() const {
  const std::scoped_lock lock(mutex_);
  return at_work_;
}

void CallThreads::work(c10::Device device) {
  std::optional<c10::Stream> own;
  if (device.is_cuda()) {
    own = c10::cuda::getStreamFromPool(/*isHighPriority=*/false, device.index());
  }
  const c10::cuda::OptionalCUDAStreamGuard stream(own);
  std::unique_lock lock(mutex_);
  while (true) {
    came_.wait(lock, [&] { return ended_ || !queue_.empty(); });
    if (queue_.empty()) {
      return;
    }
    Waiting& first = *queue_.front();
    queue_.pop_front();
    ++at_work_;
    lock.unlock();
    std::exception_ptr thrown;
    try {
      first.call(std::chrono::steady_clock::now() - first.since);
    } catch (...) {
      thrown = std::current_exception();
    }
    lock.lock();
    --at_work_;
    lock.unlock();
    std::promise<void> done = std::move(first.done); // `first` is gone as soon as it is kept
    if (thrown) {
      done.set_exception(thrown);
    } else {
      done.set_value();
    }
    lock.lock();
  }
}

} // namespace offload::tools
