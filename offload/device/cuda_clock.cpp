#include <offload/device/cuda_clock.h>

#include <c10/cuda/CUDAGuard.h>

#include <chrono>
#include <utility>

namespace offload {

namespace {

class CudaClock final : public LaneClock {
 public:
  CudaClock(c10::DeviceIndex device, cudaStream_t stream, std::shared_ptr<EventPool> events)
      : device_(device), stream_(stream), events_(std::move(events)) {}

  void begin_lap() override { begins_.push_back(mark()); }
  void end_lap() override { ends_.push_back(mark()); }

  std::optional<Laps> read() override {
    const c10::cuda::CUDAGuard guard(device_);
    if (ends_.size() != begins_.size() || ends_.empty() || !has_reached(ends_.back().event.get())) {
      return std::nullopt;
    }
    Laps laps;
    double device_us = 0;
    for (std::size_t i = 0; i < begins_.size(); ++i) {
      laps.each.push_back(between(begins_[i], ends_[i]));
      device_us += laps.each.back().device_us;
    }
    // Where the device has stalled, a host that does not wait for it is done sooner.
    const Lap all = between(begins_.front(), ends_.back());
    laps.host_waited = device_us < kMost * all.device_us && all.host_us > kMost * all.device_us;
    return laps;
  }

 private:
  static constexpr double kMost = 0.9; // of a time is all of it

  struct Mark {
    EventPtr event;
    std::chrono::steady_clock::time_point time;
  };

  static Lap between(const Mark& begin, const Mark& end) {
    float ms = 0;
    check_cuda(cudaEventElapsedTime(&ms, begin.event.get(), end.event.get()), "cudaEventElapsedTime");
    return {1e3 * static_cast<double>(ms), std::chrono::duration<double, std::micro>(end.time - begin.time).count()};
  }

  Mark mark() const {
    EventPtr event = events_->take();
    check_cuda(cudaEventRecord(event.get(), stream_), "cudaEventRecord");
    return {std::move(event), std::chrono::steady_clock::now()};
  }

  const c10::DeviceIndex device_;
  const cudaStream_t stream_;
  const std::shared_ptr<EventPool> events_;
  std::vector<Mark> begins_;
  std::vector<Mark> ends_;
};

} // namespace

std::unique_ptr<LaneClock> make_cuda_clock(c10::DeviceIndex device, cudaStream_t stream,
                                           std::shared_ptr<EventPool> events) {
  return std::make_unique<CudaClock>(device, stream, std::move(events));
}

} // namespace offload
