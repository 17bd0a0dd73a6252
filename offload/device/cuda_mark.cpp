#include <offload/device/cuda_mark.h>

#include <c10/cuda/CUDAGuard.h>

#include <utility>

namespace offload {

namespace {

class EventMark final : public Mark {
 public:
  EventMark(c10::DeviceIndex device, EventPtr event) : device_(device), event_(std::move(event)) {}

  bool is_reached() const override {
    const c10::cuda::CUDAGuard guard(device_);
    return has_reached(event_.get());
  }

  double us_after(const Mark& earlier) const override {
    const c10::cuda::CUDAGuard guard(device_);
    float ms = 0;
    check_cuda(cudaEventElapsedTime(&ms, static_cast<const EventMark&>(earlier).event_.get(), event_.get()),
               "cudaEventElapsedTime");
    return 1e3 * static_cast<double>(ms);
  }

 private:
  const c10::DeviceIndex device_;
  const EventPtr event_;
};

} // namespace

MarkPtr mark_stream(c10::DeviceIndex device, cudaStream_t stream, EventPool& events) {
  const c10::cuda::CUDAGuard guard(device);
  EventPtr event = events.take();
  check_cuda(cudaEventRecord(event.get(), stream), "cudaEventRecord");
  return std::make_shared<EventMark>(device, std::move(event));
}

} // namespace offload
