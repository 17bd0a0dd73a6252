// The load of a server: threads that call one module with sizes drawn at random, none named in advance. Every output is
// compared with the plain model's; no call may be refused, after the first calls none is made twice; and the driver
// never sees more than the budget.
//
// usage: load [--device cpu|cuda:0] [--seed N] [--threads N] [--calls N] [--lanes N,...] [--budgets BYTES,...]
//             [--transformer BYTES | --model FILE.pt] [--input 'int64[1,*]<32000'] [--sizes FROM,TO[,STEP]] [--waits]
//             [--changes N]  the budget changes so often meanwhile, to half and back; says how long that took
//             [--plain]      the plain model instead, for its time: on a GPU that holds it
//             [--flash]      attention without cuDNN, which plans it anew for each size and thread: 50 ms each
// --waits, on a machine that does nothing else: no call takes longer than those ahead take alone, and four times what
// the largest does. A failure names the seed; --seed repeats its sizes.

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>
#include <torch/csrc/jit/serialization/import.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <functional>
#include <iostream>
#include <map>
#include <mutex>
#include <random>

#include <models/transformer.h>
#include <offload/bytes.h>
#include <offload/graph/reference.h>
#include <offload/load/archive.h>
#include <offload/module.h>
#include <tools/cli.h>
#include <tools/inputs.h>

#include "print.h"
#include "temporary_file.h"
#include "threads.h"

namespace offload::test {
namespace {

using Clock = std::chrono::steady_clock;

double since_s(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

struct Arguments {
  std::string device = "cpu";
  std::uint64_t seed = 1;
  int threads = 8;
  int calls = 200;
  std::vector<int> lanes = {1, 2, 4};
  std::vector<std::string> budgets;
  std::string transformer = "2GiB";
  std::string model;
  std::string input = "int64[1,*]<32000";
  std::vector<std::int64_t> sizes = {16, 1024};
  bool waits = false;
  int changes = 0;
  bool plain = false;
  bool flash = false;
};

struct Took {
  std::int64_t size;
  double seconds;
  std::vector<std::int64_t> ahead; // the sizes of calls that were in flight when it came
};

constexpr std::uint64_t kOfLibraries = 128_MiB; // the most that they take for a lane

using Forward = std::function<c10::IValue(const c10::IValue& input)>;

/// What the driver has given out beside PyTorch's cache; nothing when that changed meanwhile.
std::optional<std::uint64_t> driver_bytes(c10::Device device) {
  const auto cached = [&] {
    return c10::cuda::CUDACachingAllocator::getDeviceStats(device.index()).reserved_bytes[0].current;
  };
  const std::int64_t before = cached();
  std::size_t free = 0;
  std::size_t total = 0;
  if (cudaMemGetInfo(&free, &total) != cudaSuccess || cached() != before) {
    return std::nullopt;
  }
  return total - free - static_cast<std::uint64_t>(before);
}

class Load {
 public:
  Load(const Arguments& arguments, std::string path)
      : arguments_(arguments), device_(arguments.device), path_(std::move(path)) {
    Reference plain(read_archive(path_), device_);
    const std::int64_t step = arguments.sizes.size() > 2 ? arguments.sizes[2] : 1;
    for (std::int64_t size = arguments.sizes[0]; size <= arguments.sizes[1]; size += step) {
      sizes_.push_back(size);
    }
    std::mt19937_64 random(arguments_.seed);
    for (int thread = 0; thread < arguments_.threads; ++thread) {
      for (int call = 0; call < arguments_.calls; ++call) {
        drawn_[thread].push_back(sizes_[random() % sizes_.size()]);
      }
    }
    for (const auto& [thread, sizes] : drawn_) {
      for (const std::int64_t size : sizes) {
        if (expected_.count(size) == 0) {
          expected_[size] = print_of(plain.run("forward", {input(size)}));
        }
      }
    }
  }

  int run(int lanes, std::uint64_t budget) { // returns the number of failures
    failures_ = 0;
    took_.clear();
    Options options;
    options.device = device_;
    options.vram_budget = budget;
    options.concurrency = lanes;
    if (device_.is_cuda()) {
      warm_up(options);
    }
    const std::uint64_t outside = device_.is_cuda() ? settled_driver_bytes() : 0;
    Module module = load(path_, options);
    module.forward({input(sizes_.front())}); // while which weights come from the file
    Forward forward = [&](const c10::IValue& x) { return module.forward({x}); };
    torch::jit::Module plain;
    if (arguments_.plain) {
      plain = torch::jit::load(path_, device_);
      forward = [&](const c10::IValue& x) {
        const at::NoGradGuard no_grad;
        return plain.forward({x});
      };
      forward(input(sizes_.front()));
      forward(input(sizes_.front()));
    }
    const auto begin = Clock::now();
    std::uint64_t repeated_first = 0;
    std::uint64_t peak = 0;
    std::atomic<int> done = 0;
    const int settled =
        std::min(50, arguments_.threads * arguments_.calls / 2); // calls, after which none is made twice
    std::atomic<bool> calling = true;
    std::thread watcher([&] {
      while (calling) {
        if (const auto now = device_.is_cuda() ? driver_bytes(device_) : std::nullopt) {
          peak = std::max(peak, *now - std::min(*now, outside));
        }
        std::this_thread::sleep_for(std::chrono::milliseconds(20)); // asking the driver slows down all others
      }
    });
    std::vector<double> changes;
    std::thread owner([&] { changes = change_budget(module, budget, calling); });
    on_threads(arguments_.threads, [&](int thread, const std::optional<c10::Stream>& stream) {
      for (const std::int64_t size : drawn_[thread]) {
        call(forward, size, stream);
        if (++done == settled) {
          repeated_first = module.stats().calls_repeated;
        }
      }
    });
    calling = false;
    watcher.join();
    owner.join();
    const Stats stats = module.stats();
    if (stats.calls_repeated > repeated_first && arguments_.changes == 0) {
      tell(std::to_string(stats.calls_repeated - repeated_first) + " calls were made twice after the first " +
           std::to_string(settled));
    }
    // cuDNN compiles a kernel of attention for each size and thread: 140 to 340 KiB of the device on an H200.
    const bool planned = arguments_.model.empty() && !arguments_.flash;
    const std::uint64_t kernels = planned ? 384_KiB * expected_.size() * lanes : 2_MiB;
    // Handles of lanes that the calls before had not used: docs/calls.md, "What no budget holds".
    const std::uint64_t libraries = std::min(left_of(stats.outside_bytes, outside), kOfLibraries * lanes);
    if (peak > budget + std::max(kernels, libraries) || stats.peak_device_bytes > budget) {
      tell("the driver gave " + format_bytes(peak) + ", by our own figure " + format_bytes(stats.peak_device_bytes));
    }
    std::cout << lanes << " lanes, " << format_bytes(budget) << ": " << done << " calls in " << since_s(begin) << " s, "
              << stats.calls_repeated << " made twice, driver " << peak / 1_MiB << " MiB, own figure "
              << stats.peak_device_bytes / 1_MiB << " MiB, " << stats.bytes_streamed / done / 1_MiB
              << " MiB streamed for a call" << std::endl;
    if (device_.is_cuda()) {
      look_at_waits(forward);
    }
    std::cout << "  failures " << failures_ << std::endl;
    if (!changes.empty()) {
      std::sort(changes.begin(), changes.end());
      std::cout << changes.size() << " changes of the budget took " << changes[changes.size() / 2]
                << " s in the median, the longest " << changes.back() << " s" << std::endl;
    }
    return failures_;
  }

 private:
  c10::IValue input(std::int64_t size) const {
    std::string text = arguments_.input;
    for (std::size_t at = text.find('*'); at != std::string::npos; at = text.find('*')) {
      text.replace(at, 1, std::to_string(size));
    }
    return tools::make_input(tools::parse_input(text), static_cast<std::uint64_t>(size), device_);
  }

  /// Threads as a server has them, each with a stream of its own.
  template <typename Work>
  void on_threads(int count, Work work) const {
    in_parallel(count, [&](int thread) {
      at::set_num_threads(1);
      std::optional<c10::Stream> stream;
      if (device_.is_cuda()) {
        stream = c10::cuda::getStreamFromPool(false, device_.index());
      }
      const c10::cuda::OptionalCUDAStreamGuard guard(stream);
      work(thread, stream);
    });
  }

  /// What lanes and threads take once is there before anything is counted.
  void warm_up(const Options& options) {
    constexpr int kStreamsOfPyTorch = 32; // each takes something of the device when it is first used
    for (int i = 0; i < kStreamsOfPyTorch; ++i) {
      const c10::cuda::CUDAStreamGuard guard(c10::cuda::getStreamFromPool(false, device_.index()));
      print_of(input(sizes_.back()));
    }
    Module module = load(path_, options);
    module.forward({input(sizes_.front())});
    on_threads(arguments_.threads, [&](int, const std::optional<c10::Stream>&) {
      for (int call = 0; call < 4; ++call) {
        print_of(module.forward({input(sizes_.back())}));
      }
    });
  }

  /// What calls take alone, as the module is planned now, and which took longer than that of those ahead allows.
  void look_at_waits(const Forward& forward) {
    std::map<std::int64_t, double> alone; // seconds, by size
    for (std::size_t i = 0; i < 8; ++i) {
      const std::int64_t size = sizes_[i * (sizes_.size() - 1) / 7];
      for (int call = 0; call < 4; ++call) { // the longest of three: the first may be new to libraries
        const c10::IValue x = input(size);
        c10::cuda::device_synchronize();
        const auto begin = Clock::now();
        forward(x);
        c10::cuda::device_synchronize();
        alone[size] = std::max(call > 1 ? alone[size] : 0, since_s(begin));
      }
    }
    const auto next_of = [&](std::int64_t size) { return alone.lower_bound(size)->second; };
    const double longest = alone.rbegin()->second;
    const Took* worst = nullptr;
    double most = 0;
    int long_waits = 0;
    int late = 0; // of them, in the second half
    for (const Took& took : took_) {
      double may_take = 4 * longest;
      for (const std::int64_t ahead : took.ahead) {
        may_take += next_of(ahead);
      }
      const bool is_long = took.seconds > may_take;
      long_waits += is_long ? 1 : 0;
      late += is_long && &took - took_.data() >= static_cast<std::ptrdiff_t>(took_.size() / 2) ? 1 : 0;
      if (took.seconds / may_take > most) {
        most = took.seconds / may_take;
        worst = &took;
      }
    }
    std::cout << "  alone, a call of size " << sizes_.back() << " takes " << longest << " s; " << long_waits << " of "
              << took_.size() << " calls took longer than they may, " << late << " of them in the second half";
    if (worst) {
      std::cout << ", call " << worst - took_.data() << " of size " << worst->size << " " << most
                << " times that: " << worst->seconds << " s";
    }
    std::cout << std::endl;
    failures_ += arguments_.waits ? long_waits : 0;
  }

  /// To half, or to the smallest, and back, while there are calls. Returns the seconds that each change took.
  std::vector<double> change_budget(Module& module, std::uint64_t budget, const std::atomic<bool>& calling) {
    std::vector<double> took;
    for (int i = 0; i < arguments_.changes && calling; ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
      const std::uint64_t less = std::max(budget / 2, module.placement().budget.minimum);
      const auto begin = Clock::now();
      try {
        module.set_vram_budget(i % 2 == 0 ? less : budget);
        took.push_back(since_s(begin));
      } catch (const std::exception& error) {
        tell(error.what());
      }
    }
    if (arguments_.changes > 0) {
      module.set_vram_budget(budget);
    }
    return took;
  }

  std::uint64_t settled_driver_bytes() const {
    c10::cuda::device_synchronize();
    c10::cuda::CUDACachingAllocator::emptyCache();
    return driver_bytes(device_).value_or(0);
  }

  void call(const Forward& forward, std::int64_t size, const std::optional<c10::Stream>& stream) {
    const c10::IValue x = input(size);
    std::vector<std::int64_t> ahead;
    {
      const std::lock_guard lock(mutex_);
      ahead.assign(in_flight_.begin(), in_flight_.end());
      in_flight_.insert(size);
    }
    const auto begin = Clock::now();
    try {
      const c10::IValue output = forward(x);
      if (stream) {
        c10::cuda::CUDAStream(*stream).synchronize();
      }
      const double took = since_s(begin);
      // The plain model is run by TorchScript's own executor here, which fuses, and rounds otherwise.
      const bool same = print_of(output) == expected_.at(size) || arguments_.plain;
      const std::lock_guard lock(mutex_);
      took_.push_back({size, took, std::move(ahead)});
      if (!same) {
        ++failures_;
        std::cout << "FAILED: other bits at size " << size << ", seed " << arguments_.seed << std::endl;
      }
    } catch (const std::exception& error) {
      tell("size " + std::to_string(size) + ": " + error.what());
    }
    const std::lock_guard lock(mutex_);
    in_flight_.erase(in_flight_.find(size));
  }

  void tell(const std::string& what) {
    const std::lock_guard lock(mutex_);
    ++failures_;
    std::cout << "FAILED: " << what << ", seed " << arguments_.seed << std::endl;
  }

  const Arguments& arguments_;
  const c10::Device device_;
  const std::string path_;
  std::vector<std::int64_t> sizes_;
  std::map<int, std::vector<std::int64_t>> drawn_; // by thread
  std::map<std::int64_t, Print> expected_;         // by size

  std::mutex mutex_; // what follows
  std::multiset<std::int64_t> in_flight_;
  int failures_ = 0;
  std::vector<Took> took_;
};

int run(const Arguments& arguments) {
  at::set_num_threads(1); // a setting of each thread, and products round by it
  at::globalContext().setSDPUseCuDNN(!arguments.flash);
  TemporaryFile file;
  std::string path = arguments.model;
  if (path.empty()) {
    models::TransformerOptions options;
    options.dtype = at::kBFloat16;
    options.vocab = tools::parse_input("int64[1]" + arguments.input.substr(arguments.input.find(']') + 1)).bound;
    models::transformer(models::transformer_of_size(parse_bytes(arguments.transformer), options)).save(file.path());
    path = file.path();
  }
  if (arguments.sizes.size() > 2 && arguments.sizes[2] < 1) {
    throw InputError("the step of --sizes is " + std::to_string(arguments.sizes[2]) + ": give 1 or more");
  }
  Load load(arguments, path);
  int failures = 0;
  for (const std::string& budget : arguments.budgets) {
    for (const int lanes : arguments.lanes) {
      failures += load.run(lanes, parse_bytes(budget));
    }
  }
  return failures == 0 ? tools::kDone : tools::kWrongResult;
}

} // namespace
} // namespace offload::test

int main(int argc, char** argv) {
  CLI::App app{"Calls a model from many threads with sizes drawn at random."};
  offload::test::Arguments arguments;
  app.add_option("--device", arguments.device);
  app.add_option("--seed", arguments.seed);
  app.add_option("--threads", arguments.threads);
  app.add_option("--calls", arguments.calls, "of each thread");
  app.add_option("--lanes", arguments.lanes)->delimiter(',');
  app.add_option("--budgets", arguments.budgets)->delimiter(',')->required();
  app.add_option("--transformer", arguments.transformer, "a language model of this size in bfloat16");
  app.add_option("--model", arguments.model, "an archive instead");
  app.add_option("--input", arguments.input, "* stands for the size");
  app.add_option("--sizes", arguments.sizes, "FROM,TO[,STEP]")->delimiter(',')->expected(2, 3);
  app.add_option("--changes", arguments.changes, "how often the budget changes meanwhile");
  app.add_flag("--plain", arguments.plain, "the plain model, for its time");
  app.add_flag("--flash", arguments.flash, "attention without cuDNN");
  app.add_flag("--waits", arguments.waits, "long waits are failures");
  return offload::tools::run_command(app, argc, argv, [&] { return offload::test::run(arguments); });
}
