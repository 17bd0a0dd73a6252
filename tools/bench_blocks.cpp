#include <tools/bench_blocks.h>

#include <ATen/cuda/CUDAEvent.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <iterator>
#include <memory>
#include <numeric>

#include <offload/measure.h>

namespace offload::tools {

namespace {

using Clock = std::chrono::steady_clock;

double since_us(Clock::time_point begin) {
  return std::chrono::duration<double, std::micro>(Clock::now() - begin).count();
}

template <class Of>
double median_of(const std::vector<Block>& blocks, Of of) {
  Times values;
  std::transform(blocks.begin(), blocks.end(), std::back_inserter(values), of);
  return median(std::move(values));
}

Times all_of(const std::vector<Block>& blocks, Times Block::* times) {
  Times all;
  for (const Block& block : blocks) {
    all.insert(all.end(), (block.*times).begin(), (block.*times).end());
  }
  return all;
}

void measure_bounds(const Yardstick& yardstick, Block& block) {
  const bool gpu = yardstick.device.is_cuda();
  block.link_bytes_per_us += (gpu ? link_bytes_per_us(yardstick.device, 3) : yardstick.link_bytes_per_us) / 2;
  if (yardstick.staged) {
    block.host_copy_bytes_per_us += measure_machine(yardstick.device).host_copy_bytes_per_us / 2;
  }
  if (yardstick.plain && !block.in_turn) {
    const Times times = time_calls(1, 2, yardstick.device, yardstick.plain);
    block.plain_us.insert(block.plain_us.end(), times.begin(), times.end());
  }
  wait_until_idle(yardstick.device);
}

} // namespace

double Block::time_us() const {
  const double calls = static_cast<double>(std::max<std::size_t>(1, call_us.size()));
  return in_turn ? median(call_us) : std::max(median(call_us), window_us / calls);
}

double Block::limit_us(std::uint64_t bytes) const {
  const double rate =
      host_copy_bytes_per_us > 0 ? std::min(link_bytes_per_us, host_copy_bytes_per_us) : link_bytes_per_us;
  return std::max(median(plain_us), static_cast<double>(bytes) / rate);
}

std::size_t Blocks::calls() const { return call_us().size() + waited_us.size(); }
double Blocks::average_us() const {
  return window_us() / static_cast<double>(std::max<std::size_t>(1, call_us().size()));
}
double Blocks::time_us() const { return median_of(blocks, std::mem_fn(&Block::time_us)); }
double Blocks::limit_us(std::uint64_t bytes) const {
  return median_of(blocks, [&](const Block& block) { return block.limit_us(bytes); });
}
double Blocks::ratio_to_limit(std::uint64_t bytes) const {
  return median_of(blocks, [&](const Block& block) { return block.time_us() / block.limit_us(bytes); });
}
double Blocks::link_bytes_per_us() const { return median_of(blocks, std::mem_fn(&Block::link_bytes_per_us)); }
double Blocks::host_copy_bytes_per_us() const { return median_of(blocks, std::mem_fn(&Block::host_copy_bytes_per_us)); }
double Blocks::window_us() const {
  return std::accumulate(blocks.begin(), blocks.end(), 0.0,
                         [](double sum, const Block& block) { return sum + block.window_us; });
}
Times Blocks::call_us() const { return all_of(blocks, &Block::call_us); }
Times Blocks::plain_us() const { return all_of(blocks, &Block::plain_us); }

namespace {

/// Calls of which none waits for the one before, each from its output to the next one's.
Times time_in_a_row(int calls, c10::Device device, const std::function<void()>& call) {
  if (!device.is_cuda()) {
    return time_calls(0, calls, device, call);
  }
  std::vector<at::cuda::CUDAEvent> events;
  for (int i = 0; i <= calls; ++i) {
    if (i > 0) {
      call();
    }
    events.emplace_back(cudaEventDefault).record();
  }
  events.back().synchronize();
  Times times;
  for (std::size_t i = 1; i < events.size(); ++i) {
    times.push_back(static_cast<double>(events[i - 1].elapsed_time(events[i])) * 1e3);
  }
  return times;
}

} // namespace

void time_block(const std::function<void()>& call, int calls, c10::Device device, Block& block) {
  const auto begin = Clock::now();
  block.call_us = time_in_a_row(calls, device, call);
  wait_until_idle(device); // what was prefetched for a call that does not come was put under way in the window, too
  block.window_us = since_us(begin);
}

namespace {

/// Each of ours is followed by a plain one.
void time_in_turn(const std::function<void()>& call, int calls, const Yardstick& yardstick, Block& block) {
  const auto begin = Clock::now();
  for (int i = 0; i < calls; ++i) {
    block.call_us.push_back(time_calls(0, 1, yardstick.device, call)[0]);
    block.plain_us.push_back(time_calls(0, 1, yardstick.device, yardstick.plain)[0]);
  }
  wait_until_idle(yardstick.device);
  block.window_us = since_us(begin) - std::accumulate(block.plain_us.begin(), block.plain_us.end(), 0.0);
}

} // namespace

Blocks measure_blocks(const std::function<void()>& call, int calls, bool streams, const Yardstick& yardstick) {
  constexpr int kBlocks = 7;
  constexpr double kBlockUs = 300e3; // what begins and ends a block is little of it
  const bool in_turn = !streams && yardstick.plain;
  const c10::Device device = yardstick.device;
  Blocks measured;
  measured.waited_us = time_calls(0, 5, device, call);
  const int in_each =
      std::max((calls + kBlocks - 1) / kBlocks, static_cast<int>(kBlockUs / median(measured.waited_us)) + 1);
  for (int number = 0; number < (in_turn ? 1 : kBlocks); ++number) {
    Block block;
    block.in_turn = in_turn;
    measure_bounds(yardstick, block);
    if (in_turn) {
      time_in_turn(call, std::max(2 * calls, in_each / 2), yardstick, block);
    } else {
      time_block(call, in_each, device, block);
    }
    measure_bounds(yardstick, block);
    if (block.plain_us.empty()) {
      block.plain_us = yardstick.plain_us;
    }
    measured.blocks.push_back(std::move(block));
  }
  return measured;
}

double link_bytes_per_us(c10::Device device, int copies) {
  constexpr std::int64_t kBytes = 256LL << 20;
  const at::Tensor host = at::empty({kBytes}, at::TensorOptions(at::kByte).pinned_memory(true));
  void* there = nullptr; // from the driver, so that PyTorch's allocator keeps nothing
  C10_CUDA_CHECK(cudaMalloc(&there, kBytes));
  const std::unique_ptr<void, cudaError_t (*)(void*)> owner(there, &cudaFree);
  cudaStream_t stream = c10::cuda::getCurrentCUDAStream(device.index()).stream();
  Times times;
  for (int i = 0; i <= copies; ++i) {
    at::cuda::CUDAEvent begin(cudaEventDefault);
    at::cuda::CUDAEvent end(cudaEventDefault);
    begin.record();
    C10_CUDA_CHECK(cudaMemcpyAsync(there, host.data_ptr(), kBytes, cudaMemcpyHostToDevice, stream));
    end.record();
    end.synchronize();
    if (i > 0) {
      times.push_back(static_cast<double>(begin.elapsed_time(end)) * 1e3);
    }
  }
  return static_cast<double>(kBytes) / median(times);
}

std::uint64_t free_bytes(c10::Device device) {
  if (!device.is_cuda()) {
    return static_cast<std::uint64_t>(sysconf(_SC_AVPHYS_PAGES)) * static_cast<std::uint64_t>(sysconf(_SC_PAGESIZE));
  }
  std::size_t free = 0;
  std::size_t total = 0;
  return cudaMemGetInfo(&free, &total) == cudaSuccess ? free : 0;
}

void wait_for_call(c10::Device device) {
  if (device.is_cuda()) {
    c10::cuda::getCurrentCUDAStream(device.index()).synchronize();
  }
}

void wait_until_idle(c10::Device device) {
  if (device.is_cuda()) {
    c10::cuda::device_synchronize();
  }
}

Times time_calls(int warm_up, int calls, c10::Device device, const std::function<void()>& call) {
  Times times;
  for (int i = -warm_up; i < calls; ++i) {
    wait_for_call(device);
    const auto begin = Clock::now();
    call();
    wait_for_call(device);
    if (i >= 0) {
      times.push_back(since_us(begin));
    }
  }
  return times;
}

} // namespace offload::tools
