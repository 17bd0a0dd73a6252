#include <offload/device/cuda_calls.h>

#include <pthread.h>

#include <atomic>
#include <string>

#include <offload/error.h>

namespace offload {

namespace {

enum class Cuda { unused, used, lost };
std::atomic<Cuda> cuda = Cuda::unused;

[[maybe_unused]] const int kRegistered = pthread_atfork(nullptr, nullptr, [] {
  if (cuda == Cuda::used) {
    cuda = Cuda::lost;
  }
});

} // namespace

void require_cuda() {
  Cuda before = Cuda::unused;
  if (!cuda.compare_exchange_strong(before, Cuda::used) && before == Cuda::lost) {
    throw Error(
        "CUDA can not be used in this process, since the one that it was forked from has used it: fork before "
        "the first module is loaded, start another program, or give the device cpu");
  }
}

bool worked(cudaError_t code) {
  if (code != cudaSuccess) {
    static_cast<void>(cudaGetLastError());
  }
  return code == cudaSuccess;
}

OwnStream::OwnStream() {
  int least = 0;
  int greatest = 0;
  check_cuda(cudaDeviceGetStreamPriorityRange(&least, &greatest), "cudaDeviceGetStreamPriorityRange");
  check_cuda(cudaStreamCreateWithPriority(&stream_, cudaStreamNonBlocking, greatest), "cudaStreamCreate");
}

void check_cuda(cudaError_t code, const char* doing) {
  if (!worked(code)) {
    throw Error(std::string(doing) + " failed: " + cudaGetErrorString(code));
  }
}

bool has_reached(cudaEvent_t event) { return cudaPeekAtLastError() == cudaSuccess && worked(cudaEventQuery(event)); }

EventPool::~EventPool() {
  for (cudaEvent_t event : free_) {
    static_cast<void>(cudaEventDestroy(event));
  }
}

EventPtr EventPool::take() {
  cudaEvent_t event = nullptr;
  if (const std::lock_guard lock(mutex_); !free_.empty()) {
    event = free_.back();
    free_.pop_back();
  }
  if (!event) {
    check_cuda(cudaEventCreateWithFlags(&event, flags_), "cudaEventCreate");
  }
  return {event, [pool = shared_from_this()](cudaEvent_t unused) {
            const std::lock_guard lock(pool->mutex_);
            pool->free_.push_back(unused);
          }};
}

EventPtr CudaCall::record() const {
  const std::lock_guard lock(mutex_);
  if (ended_) {
    return end_;
  }
  EventPtr event = events_->take();
  check_cuda(cudaEventRecord(event.get(), stream_), "cudaEventRecord");
  return event;
}

void CudaCall::end() noexcept {
  const std::lock_guard lock(mutex_);
  if (!ended_ && !worked(cudaEventRecord(end_.get(), stream_))) {
    worked(cudaStreamSynchronize(stream_)); // what waits for the event, which is of an earlier time, may go on
  }
  ended_ = true;
}

CudaCallPtr CudaCalls::begin(int lane, cudaStream_t stream) {
  auto call = std::make_shared<CudaCall>(stream, events_);
  if (const CudaCallPtr before = last(lane)) {
    check_cuda(cudaStreamWaitEvent(stream, before->record().get()), "cudaStreamWaitEvent");
  }
  const std::lock_guard lock(mutex_);
  last_[static_cast<std::size_t>(lane)] = call;
  return call;
}

CudaCallPtr CudaCalls::last(int lane) const {
  const std::lock_guard lock(mutex_);
  return last_[static_cast<std::size_t>(lane)];
}

void CudaCalls::synchronize(int lane) const {
  if (const CudaCallPtr call = last(lane)) {
    check_cuda(cudaEventSynchronize(call->record().get()), "waiting for the device");
  }
}

void CudaCalls::synchronize() const {
  for (int lane = 0; lane < lanes_; ++lane) {
    synchronize(lane);
  }
}

} // namespace offload
