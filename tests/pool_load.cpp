// Several models under one budget, called by Zipf's law from many threads: in a pool, with equal budgets of their own,
// or loaded and dropped on demand by plain TorchScript. Every output is compared with the plain model's, no call may be
// refused, and in a pool the driver never sees more than the budget and what libraries take.
//
// usage: pool_load --budget BYTES [--device cpu|cuda:0] [--threads N] [--seconds N] [--seed N] [--how pool,fixed,plain]
//                  [--transformers BYTES,...] [--model FILE.pt=INPUT;...]...       as in vit.pt='float32[*,3,64,64]'
//                  [--sizes N,...]    what * stands for
// Models are called the more the earlier they are named. Beside calls a second it tells, of the three that are called
// most, how long a call takes in the pool and with a budget that holds the model; of the one that is called least, how
// long its first call takes after all of it has been released, and one that streams in a budget of its own.

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
#include <list>
#include <map>
#include <mutex>
#include <random>
#include <sstream>

#include <models/transformer.h>
#include <offload/bytes.h>
#include <offload/graph/reference.h>
#include <offload/load/archive.h>
#include <offload/pool.h>
#include <tools/cli.h>
#include <tools/inputs.h>

#include "plain_on_demand.h"
#include "print.h"
#include "temporary_file.h"
#include "threads.h"

namespace offload::test {
namespace {

using Clock = std::chrono::steady_clock;

double since_s(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

struct Arguments {
  std::string device = "cpu";
  std::string budget;
  std::vector<std::string> transformers;
  std::vector<std::string> models;
  std::vector<std::int64_t> sizes = {16, 64};
  std::vector<std::string> how = {"pool"};
  int threads = 16;
  double seconds = 10;
  std::uint64_t seed = 1;
};

struct Model {
  std::string path;
  std::string inputs;                     ///< as tools::parse_input reads them, with ; between
  std::map<std::int64_t, Print> expected; ///< by size
  bool runs_plainly = true; ///< on the device without what we change in graphs that were traced on another
};

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values.empty() ? 0 : values[values.size() / 2];
}

class PoolLoad {
 public:
  PoolLoad(const Arguments& arguments, std::vector<Model> models)
      : arguments_(arguments),
        device_(arguments.device),
        budget_(parse_bytes(arguments.budget)),
        models_(std::move(models)) {
    for (Model& model : models_) {
      Reference plain(read_archive(model.path), device_);
      for (const std::int64_t size : arguments_.sizes) {
        model.expected[size] = print_of(plain.run("forward", inputs(model, size)));
      }
      try {
        const at::NoGradGuard no_grad;
        torch::jit::Module module = torch::jit::load(model.path, device_);
        module.forward(inputs(model, arguments_.sizes.front()));
      } catch (const std::exception&) {
        model.runs_plainly = false;
      }
    }
  }

  int run(const std::string& how) {
    failures_ = 0;
    synchronize();
    outside_ = driver_bytes();
    std::cout << how << ": " << models_.size() << " models, " << arguments_.threads << " threads, "
              << arguments_.seconds << " s, budget " << format_bytes(budget_) << std::endl;
    if (how == "pool") {
      in_pool();
    } else if (how == "fixed") {
      const std::vector<Module> modules = load_all(budget_ / models_.size());
      serve([&](std::size_t i, const Inputs& x) { return Module(modules[i]).forward(x); });
    } else {
      on_demand();
    }
    std::cout << "  failures " << failures_ << std::endl;
    return failures_;
  }

 private:
  using Inputs = std::vector<c10::IValue>;
  using Call = std::function<c10::IValue(std::size_t model, const Inputs& inputs)>;

  std::vector<c10::IValue> inputs(const Model& model, std::int64_t size) const {
    std::string text = model.inputs;
    for (std::size_t at = text.find('*'); at != std::string::npos; at = text.find('*')) {
      text.replace(at, 1, std::to_string(size));
    }
    std::vector<c10::IValue> inputs;
    std::istringstream all(text);
    for (std::string each; std::getline(all, each, ';');) {
      inputs.emplace_back(tools::make_input(tools::parse_input(each), static_cast<std::uint64_t>(size), device_));
    }
    return inputs;
  }

  Options options(std::uint64_t vram) const {
    Options options;
    options.device = device_;
    options.vram_budget = vram;
    return options;
  }

  std::vector<Module> load_all(std::uint64_t each) const {
    std::vector<Module> modules;
    for (const Model& model : models_) {
      modules.push_back(load(model.path, options(each)));
    }
    return modules;
  }

  void synchronize() const {
    if (device_.is_cuda()) {
      c10::cuda::device_synchronize();
    }
  }

  void in_pool() {
    PoolOptions pool_options;
    pool_options.device = device_;
    pool_options.vram_budget = budget_;
    const auto pool = std::make_shared<Pool>(pool_options);
    Options in_pool;
    in_pool.pool = pool;
    std::vector<Module> modules;
    for (const Model& model : models_) {
      modules.push_back(load(model.path, in_pool));
    }
    const std::uint64_t peak = serve([&](std::size_t i, const Inputs& x) { return Module(modules[i]).forward(x); });
    const Stats stats = pool->stats();
    // Handles and kernels: docs/calls.md, "What no budget holds".
    const std::uint64_t libraries =
        std::min(left_of(stats.outside_bytes, outside_), 128_MiB * pool_options.concurrency);
    std::cout << "  beside budgets came " << format_bytes(libraries) << "\n";
    if (peak > budget_ + libraries) {
      ++failures_;
      std::cout << "FAILED: the driver gave more than the budget and what came beside it" << std::endl;
    }
    for (const PoolEntry& entry : pool->entries()) {
      std::cout << "  " << entry.name << ": " << entry.calls << " calls, " << format_bytes(entry.resident_bytes)
                << " of " << format_bytes(entry.weight_bytes) << " resident, last woken in " << entry.wake_seconds
                << " s" << (entry.problem.empty() ? "" : "; " + entry.problem) << "\n";
    }
    std::cout << "  pool: " << stats;
    const auto in_the_pool = [&](std::size_t i) {
      return time_of(i, [&](const Inputs& x) { return modules[i].forward(x); });
    };
    std::vector<double> busy;
    std::vector<std::string> resident;
    for (std::size_t i = 0; i < std::min<std::size_t>(3, models_.size()); ++i) {
      const auto end = Clock::now() + std::chrono::seconds(20); // by its calls of late it takes the place of others
      while (Clock::now() < end && pool->entries()[i].resident_bytes < pool->entries()[i].weight_bytes) {
        in_the_pool(i);
      }
      busy.push_back(in_the_pool(i));
      resident.push_back(format_bytes(pool->entries()[i].resident_bytes));
    }
    const std::size_t idle = models_.size() - 1;
    const Inputs x = inputs(models_[idle], arguments_.sizes.back());
    std::vector<double> first;
    for (int round = 0; round < 5; ++round) {
      modules[idle].release();
      synchronize();
      const auto begin = Clock::now();
      modules[idle].forward(x);
      synchronize();
      first.push_back(since_s(begin));
    }
    modules.clear();
    for (std::size_t i = 0; i < busy.size(); ++i) {
      Module alone = load(models_[i].path, options(2 * budget_));
      const auto forward = [&](const Inputs& of) { return alone.forward(of); };
      time_of(i, forward);
      std::cout << "  model " << i << ": a call of one caller, with " << resident[i] << " resident, takes "
                << busy[i] / time_of(i, forward) << " of one with all of it resident" << std::endl;
    }
    Module alone = load(models_[idle].path, options(2 * budget_));
    alone.forward(x);
    alone.set_vram_budget(alone.placement().budget.minimum + alone.placement().budget.ring);
    const auto forward = [&](const Inputs& of) { return alone.forward(of); };
    time_of(idle, forward);
    std::cout << "  model " << idle << ": the first call after it was released takes "
              << median(first) / time_of(idle, forward) << " of one that streams" << std::endl;
  }

  void on_demand() {
    for (std::size_t i = 0; i < models_.size(); ++i) {
      if (!models_[i].runs_plainly) {
        std::cout << "  model " << i << " does not run plainly on " << device_ << ", and is not called\n";
      }
    }
    PlainOnDemand plain(device_, budget_);
    serve([&](std::size_t i, const Inputs& x) { return plain.forward(models_[i].path, x); }, /*plainly=*/true);
  }

  /// The median of a few calls, in seconds.
  double time_of(std::size_t i, const std::function<c10::IValue(const Inputs& inputs)>& forward) const {
    const Inputs x = inputs(models_[i], arguments_.sizes.back());
    std::vector<double> took;
    for (int call = 0; call < 12; ++call) {
      synchronize();
      const auto begin = Clock::now();
      forward(x);
      synchronize();
      took.push_back(since_s(begin));
    }
    return median({took.begin() + 2, took.end()});
  }

  /// Returns the most that the driver gave out meanwhile.
  std::uint64_t serve(const Call& call, bool plainly = false) {
    std::vector<double> weights;
    for (std::size_t i = 0; i < models_.size(); ++i) {
      weights.push_back(plainly && !models_[i].runs_plainly ? 0 : 1.0 / static_cast<double>(i + 1));
    }
    const auto begin = Clock::now();
    std::atomic<bool> calling = true;
    std::uint64_t peak = 0;
    std::thread watcher([&] {
      while (calling) {
        const std::uint64_t now = driver_bytes();
        peak = std::max(peak, now - std::min(now, outside_));
        std::this_thread::sleep_for(std::chrono::milliseconds(20)); // asking the driver slows down all others
      }
    });
    std::vector<std::vector<double>> took(models_.size());
    std::mutex mutex;
    int late = 0; // calls of the second half
    in_parallel(arguments_.threads, [&](int thread) {
      at::set_num_threads(1);
      std::optional<c10::Stream> stream;
      if (device_.is_cuda()) {
        stream = c10::cuda::getStreamFromPool(false, device_.index());
      }
      const c10::cuda::OptionalCUDAStreamGuard guard(stream);
      std::mt19937_64 random(arguments_.seed * 1000 + static_cast<std::uint64_t>(thread));
      std::discrete_distribution<std::size_t> zipf(weights.begin(), weights.end());
      while (since_s(begin) < arguments_.seconds) {
        const std::size_t i = zipf(random);
        const std::int64_t size = arguments_.sizes[random() % arguments_.sizes.size()];
        std::string wrong;
        const auto called = Clock::now();
        try {
          const c10::IValue output = call(i, inputs(models_[i], size));
          wrong = print_of(output) == models_[i].expected.at(size) ? "" : "other bits";
        } catch (const std::exception& error) {
          wrong = error.what();
        }
        const std::lock_guard lock(mutex);
        took[i].push_back(since_s(called));
        late += since_s(begin) > arguments_.seconds / 2 ? 1 : 0;
        if (!wrong.empty()) {
          ++failures_;
          std::cout << "FAILED: model " << i << ", size " << size << ": " << wrong << std::endl;
        }
      }
    });
    const double seconds = since_s(begin);
    calling = false;
    watcher.join();
    std::size_t calls = 0;
    for (std::size_t i = 0; i < took.size(); ++i) {
      calls += took[i].size();
      std::sort(took[i].begin(), took[i].end());
      std::cout << "  model " << i << ": " << took[i].size() << " calls, median " << median(took[i]) << " s, longest "
                << (took[i].empty() ? 0 : took[i].back()) << " s\n";
    }
    std::cout << "  " << static_cast<double>(calls) / seconds << " calls a second, "
              << late / (seconds - arguments_.seconds / 2) << " in the second half; driver " << peak / 1_MiB << " MiB"
              << std::endl;
    return peak;
  }

  /// What the driver has given out beside PyTorch's cache; 0 on a host.
  std::uint64_t driver_bytes() const {
    std::size_t free = 0;
    std::size_t total = 0;
    if (device_.is_cpu() || cudaMemGetInfo(&free, &total) != cudaSuccess) {
      return 0;
    }
    const auto cached = c10::cuda::CUDACachingAllocator::getDeviceStats(device_.index()).reserved_bytes[0].current;
    return total - free - static_cast<std::uint64_t>(cached);
  }

  const Arguments& arguments_;
  const c10::Device device_;
  const std::uint64_t budget_;
  std::vector<Model> models_;
  std::uint64_t outside_ = 0; // what the driver had given out before modules were loaded
  std::atomic<int> failures_ = 0;
};

int run(const Arguments& arguments) {
  at::set_num_threads(1); // a setting of each thread, and products round by it
  at::globalContext().setSDPUseCuDNN(false);
  std::vector<Model> models;
  std::list<TemporaryFile> files;
  for (const std::string& bytes : arguments.transformers) {
    models::TransformerOptions options;
    options.dtype = at::kBFloat16;
    options.vocab = 4000;
    options.seed = models.size();
    models.push_back({files.emplace_back().path(), "int64[1,*]<4000", {}});
    models::transformer(models::transformer_of_size(parse_bytes(bytes), options)).save(models.back().path);
  }
  for (const std::string& model : arguments.models) {
    const std::size_t equals = model.rfind('=');
    if (equals == std::string::npos) {
      throw InputError("--model " + model + ": give FILE=INPUT, as in vit.pt='float32[*,3,64,64]'");
    }
    models.push_back({model.substr(0, equals), model.substr(equals + 1), {}});
  }
  PoolLoad load(arguments, std::move(models));
  int failures = 0;
  for (const std::string& how : arguments.how) {
    failures += load.run(how);
  }
  return failures == 0 ? tools::kDone : tools::kWrongResult;
}

} // namespace
} // namespace offload::test

int main(int argc, char** argv) {
  CLI::App app{"Calls several models under one budget by Zipf's law."};
  offload::test::Arguments arguments;
  app.add_option("--device", arguments.device);
  app.add_option("--budget", arguments.budget)->required();
  app.add_option("--transformers", arguments.transformers, "language models of these sizes in bfloat16")
      ->delimiter(',');
  app.add_option("--model", arguments.models, "FILE=INPUT");
  app.add_option("--sizes", arguments.sizes)->delimiter(',');
  app.add_option("--how", arguments.how)->delimiter(',')->check(CLI::IsMember({"pool", "fixed", "plain"}));
  app.add_option("--threads", arguments.threads);
  app.add_option("--seconds", arguments.seconds);
  app.add_option("--seed", arguments.seed);
  return offload::tools::run_command(app, argc, argv, [&] { return offload::test::run(arguments); });
}
