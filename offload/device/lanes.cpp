#include <offload/device/lanes.h>

#include <ATen/core/functional.h>

namespace offload {

namespace {

class HostLanes final : public Lanes {
 public:
  std::unique_ptr<Call> enter(int, Overflow, bool) override { return std::make_unique<HostCall>(); }
  void run(int, const std::function<void()>& work) override { work(); }
  bool owns(const void*) const override { return false; }
  bool retains(const void*) const override { return false; }
  void release() override {}
  bool trim_to_room() override { return true; }
  std::uint64_t held() const override { return 0; }
  std::uint64_t state() const override { return 0; }
  void synchronize() override {}
  std::shared_ptr<const CudaCalls> calls() const override { return nullptr; }
  const void* callers_stream() const override { return nullptr; }
  void refuse_from(int, std::uint64_t) override {}

 private:
  class HostCall final : public Call {
   public:
    std::vector<at::Tensor> retain(const std::vector<at::Tensor>& inner) override { return detach(inner); }
    std::vector<at::Tensor> detach(const std::vector<at::Tensor>& inner) override {
      return c10::fmap(inner, [](const at::Tensor& tensor) { return tensor.clone(); });
    }
    std::unique_ptr<LaneClock> make_clock() override {
      return std::make_unique<LaneClock>([] { return std::make_shared<HostMark>(); }, LaneClock::Thread::computes);
    }
    bool overflowed() const override { return false; }
    bool must_stop() const override { return false; }
    CallMemory end() override { return {}; }
  };
};

} // namespace

std::unique_ptr<Lanes> make_lanes(c10::Device device, int count, std::shared_ptr<LaneGate> gate) {
  return device.is_cuda() ? make_cuda_lanes(device, count, std::move(gate)) : std::make_unique<HostLanes>();
}

} // namespace offload
