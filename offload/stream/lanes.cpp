#include <offload/stream/lanes.h>

namespace offload {

namespace {

class HostLanes final : public Lanes {
 public:
  std::unique_ptr<Call> enter(int) override { return std::make_unique<HostCall>(); }
  bool owns(const void*) const override { return false; }
  bool keeps(const void*) const override { return false; }
  void set_capacity(const LaneCapacity&, std::uint64_t) override {}
  void begin_measuring(std::uint64_t, const LaneCapacity&, bool) override {}
  MeasuredCall end_measuring() override { return {}; }
  std::uint64_t held() const override { return 0; }
  Refusal take_refused(int) override { return {}; }
  void synchronize() override {}
  std::shared_ptr<const CudaCalls> calls() const override { return nullptr; }
  const void* callers_stream() const override { return nullptr; }

 private:
  class HostCall final : public Call {
   public:
    std::vector<at::Tensor> keep(const std::vector<at::Tensor>& inner) override { return leave(inner); }
    std::vector<at::Tensor> leave(const std::vector<at::Tensor>& inner) override {
      std::vector<at::Tensor> outer;
      outer.reserve(inner.size());
      for (const at::Tensor& tensor : inner) {
        outer.push_back(tensor.clone());
      }
      return outer;
    }
  };
};

} // namespace

std::unique_ptr<Lanes> make_lanes(c10::Device device, int count) {
  return device.is_cuda() ? make_cuda_lanes(device, count) : std::make_unique<HostLanes>();
}

} // namespace offload
