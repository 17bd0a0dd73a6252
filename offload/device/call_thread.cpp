#include <offload/device/call_thread.h>

#include <ATen/ThreadLocalState.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <utility>

#include <offload/core/start_thread.h>

namespace offload {

namespace {

thread_local bool serves_a_lane = false;

} // namespace

CallThread::~CallThread() {
  if (thread_.joinable()) {
    work_ = nullptr;
    wanted_.release();
    thread_.join();
  }
}

void CallThread::run(c10::Device device, const std::function<void()>& work) {
  if (!thread_.joinable()) {
    thread_ = start_thread<std::thread>("the calls of a lane", [this] { serve(); });
  }
  const at::ThreadLocalState state; // gradients, inference mode, dispatch, profilers
  const c10::DeviceIndex current = c10::cuda::current_device();
  const c10::cuda::CUDAStream stream = c10::cuda::getCurrentCUDAStream(device.index());
  const std::function<void()> with_state = [&] { // see Note [Guards of a call] in runtime/executor.cpp
    const at::ThreadLocalStateGuard same_state(state);
    const c10::cuda::CUDAStreamGuard same_stream(stream);
    const c10::cuda::CUDAGuard same_device(current);
    work();
  };
  work_ = &with_state;
  wanted_.release();
  done_.acquire();
  if (failure_) {
    std::rethrow_exception(std::exchange(failure_, nullptr));
  }
}

bool CallThread::is_current() { return serves_a_lane; }

void CallThread::serve() {
  serves_a_lane = true;
  for (wanted_.acquire(); work_; wanted_.acquire()) {
    try {
      (*work_)();
    } catch (...) {
      failure_ = std::current_exception();
    }
    done_.release();
  }
}

} // namespace offload
