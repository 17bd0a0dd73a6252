#include <offload/plan/simulate.h>

#include <algorithm>
#include <numeric>
#include <utility>

#include <offload/feed/copies.h>
#include <offload/ring/streamer.h>

namespace offload {

namespace {

class Moment final : public Fence {
 public:
  Moment(int channel, double us) : Fence(channel), at_us(us) {}
  const double at_us;
};

double at_us(const Fence& fence) { return static_cast<const Moment&>(fence).at_us; }

/// Two clocks, one of the copy stream and one of the only lane. The host is taken to be ahead of both.
class ClockLink final : public Link {
 public:
  explicit ClockLink(const MachineProfile& machine) : machine_(machine) {}

  void wait(const Fence& used) override { copy_us_ = std::max(copy_us_, at_us(used)); }
  FencePtr record_arrived() override { return std::make_shared<Moment>(Fence::of_link(), copy_us_); }
  void wait_arrived(int, const Fence& arrived) override {
    stall_us_ += std::max(0.0, at_us(arrived) - compute_us_);
    compute_us_ = std::max(compute_us_, at_us(arrived));
  }
  FencePtr record_used(int lane) override { return std::make_shared<Moment>(lane, compute_us_); }
  void record_now(const Fence&) override {}
  bool reached(const Fence&) override { return true; }
  void synchronize(const Fence&) override {}
  double stall_us() override { return stall_us_; }

  /// What comes next comes from a source of this rate.
  void set_source(double bytes_per_us) { source_bytes_per_us_ = bytes_per_us; }
  void compute(double us) { compute_us_ += us; }
  double now_us() const { return compute_us_; }

 protected:
  void enqueue_copy(void*, const void*, std::size_t bytes) override {
    const double rate = std::min(machine_.link_bytes_per_us, source_bytes_per_us_);
    copy_us_ += machine_.copy_overhead_us + static_cast<double>(bytes) / rate;
  }

 private:
  const MachineProfile& machine_;
  double source_bytes_per_us_ = 0;
  double copy_us_ = 0;
  double compute_us_ = 0;
  double stall_us_ = 0;
};

/// A store without bytes: it knows where they would lie on the host, and what each would come from.
class ClockStore final : public Store {
 public:
  ClockStore(ClockLink& link, const WeightTable& weights, const MachineProfile& machine)
      : link_(link), weights_(weights), machine_(machine) {}

  void issue(Batch batch) override {
    wait_for_readers(link_, batch);
    std::uint64_t bytes = 0; // of neighbours: one copy
    for (std::size_t i = 0; i < batch.fetches.size(); ++i) {
      bytes += batch.fetches[i].bytes;
      if (i + 1 == batch.fetches.size() || !are_neighbours(batch.fetches[i], batch.fetches[i + 1])) {
        link_.set_source(rate_of(weights_[batch.fetches[i].weight].source));
        link_.copy(nullptr, nullptr, std::exchange(bytes, 0));
      }
    }
    finish(link_, batch);
  }

  void drain() override {}

 private:
  double rate_of(const Source& source) const { // bytes a microsecond
    return source.kind == Source::Kind::file ? machine_.file_bytes_per_us
           : source.direct                   ? machine_.link_bytes_per_us
                                             : machine_.host_copy_bytes_per_us;
  }

  bool are_neighbours(const Fetch& a, const Fetch& b) const {
    const Source& first = weights_[a.weight].source;
    const Source& second = weights_[b.weight].source;
    return a.place + a.bytes == b.place && first.kind == Source::Kind::memory && second.kind == first.kind &&
           first.direct == second.direct && first.offset + a.bytes == second.offset;
  }

  ClockLink& link_;
  const WeightTable& weights_;
  const MachineProfile& machine_;
};

} // namespace

std::uint64_t bytes_of(const Residency& residency) {
  return std::accumulate(residency.bytes.begin(), residency.bytes.end(), residency.ring_bytes);
}

std::uint64_t bytes_taken_on_host(const Residency& residency, const WeightTable& weights) {
  std::uint64_t total = residency.ring_bytes;
  for (WeightId weight = 0; weight < weights.size(); ++weight) {
    total += weights[weight].source.kind == Source::Kind::file ? residency.bytes[weight] : 0;
  }
  return total;
}

Simulated simulate(const Pass& pass, const Residency& residency, const MachineProfile& machine,
                   std::size_t most_calls) {
  const auto sequence = std::make_shared<const Sequence>(streamed_sequence(pass, residency));
  ClockLink link(machine);
  ClockStore store(link, *pass.weights, machine);
  StreamerConfig config;
  config.link = &link;
  config.store = &store;
  config.ring_bytes = residency.ring_bytes;
  config.batch_bytes = kBatchBytes;
  config.weights = pass.weights;
  Streamer streamer(std::move(config));

  std::vector<Simulated> passes;
  const auto run_pass = [&] {
    const double begin_us = link.now_us();
    const double stall_us = link.stall_us();
    const std::uint64_t bytes = streamer.bytes_used();
    streamer.begin(0, sequence);
    auto streamed = sequence->begin();
    for (const PlanStep& step : pass.steps) {
      const bool streams =
          streamed != sequence->end() && std::any_of(step.weights.begin(), step.weights.end(),
                                                     [&](WeightId weight) { return !residency.stays(weight); });
      if (streams) {
        streamer.acquire(0, *streamed);
      }
      link.compute(std::max(step.compute_us, machine.node_overhead_us));
      if (streams) {
        streamer.release(0, *streamed);
        ++streamed;
      }
    }
    streamer.end(0);
    passes.push_back({link.now_us() - begin_us, link.stall_us() - stall_us, streamer.bytes_used() - bytes});
  };
  // The first pass fills the ring. Once one ends as an earlier one did, all that comes repeats what came between. That
  // may take dozens of passes; long ones are not given as many.
  const std::size_t most = std::min(most_calls, std::clamp<std::size_t>(50'000 / (pass.steps.size() + 1), 24, 96));
  std::vector<std::vector<std::uint64_t>> layouts;
  std::size_t period = 0;
  while ((period == 0 || passes.size() < 3) && passes.size() < most) {
    run_pass();
    const auto now = streamer.layout();
    if (const auto same = std::find(layouts.begin(), layouts.end(), now); period == 0 && same != layouts.end()) {
      period = static_cast<std::size_t>(layouts.end() - same);
    }
    layouts.push_back(now);
  }
  if (period == 0) {
    period = passes.size() / 2;
  }
  Simulated mean;
  for (std::size_t i = passes.size() - period; i < passes.size(); ++i) {
    mean.time_us += passes[i].time_us / static_cast<double>(period);
    mean.stall_us += passes[i].stall_us / static_cast<double>(period);
    mean.streamed_bytes += passes[i].streamed_bytes;
  }
  mean.streamed_bytes /= period;
  mean.period = period;
  return mean;
}

} // namespace offload
