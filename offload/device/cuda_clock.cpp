#include <offload/device/cuda_clock.h>

#include <chrono>
#include <utility>

namespace offload {

namespace {

class CudaClock final : public LaneClock {
 public:
  CudaClock(cudaStream_t stream, std::shared_ptr<EventPool> events) : stream_(stream), events_(std::move(events)) {}

  void begin_lap() override { begins_.push_back(mark()); }
  void end_lap() override { ends_.push_back(mark()); }

  std::optional<std::vector<Lap>> read() override {
    if (ends_.size() != begins_.size() || ends_.empty() || !has_reached(ends_.back().event.get())) {
      return std::nullopt;
    }
    std::vector<Lap> laps;
    for (std::size_t i = 0; i < begins_.size(); ++i) {
      float ms = 0;
      if (!worked(cudaEventElapsedTime(&ms, begins_[i].event.get(), ends_[i].event.get()))) {
        return std::nullopt;
      }
      laps.push_back({1e3 * static_cast<double>(ms),
                      std::chrono::duration<double, std::micro>(ends_[i].time - begins_[i].time).count()});
    }
    return laps;
  }

 private:
  struct Mark {
    EventPtr event;
    std::chrono::steady_clock::time_point time;
  };

  Mark mark() const {
    EventPtr event = events_->take();
    check_cuda(cudaEventRecord(event.get(), stream_), "cudaEventRecord");
    return {std::move(event), std::chrono::steady_clock::now()};
  }

  const cudaStream_t stream_;
  const std::shared_ptr<EventPool> events_;
  std::vector<Mark> begins_;
  std::vector<Mark> ends_;
};

} // namespace

std::unique_ptr<LaneClock> make_cuda_clock(cudaStream_t stream, std::shared_ptr<EventPool> events) {
  return std::make_unique<CudaClock>(stream, std::move(events));
}

} // namespace offload
