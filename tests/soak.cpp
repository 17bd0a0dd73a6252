// What a server does to a module, for as long as it is told: random models, budgets, lanes and callers; callers that
// make mistakes, copies that go, budgets that change meanwhile; beside them other modules that come and go, files that
// change, children of the process and memory that is refused. Every output is compared bit by bit; nobody may wait much
// longer than the others, or for ever; and what a round took it has given back.
//
// usage: soak [--seconds N] [--seed N] [--waits] [--device cpu|cuda:0] [--library FILE.so]... FOLDER...
// --waits, on a machine that does nothing else, and with nothing beside the calls: the longest wait of a round is
// within 3 of the median for those before it. A failure names its round; `--seed N --rounds 1` repeats it.

#include <ATen/Parallel.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/csrc/jit/api/module.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <iostream>
#include <map>
#include <mutex>
#include <random>
#include <sstream>
#include <thread>
#include <typeinfo>

#include <offload/bytes.h>
#include <offload/graph/reference.h>
#include <offload/load/archive.h>
#include <offload/module.h>
#include <offload/preview.h>
#include <tools/cli.h>
#include <tools/compare.h>

#include "archives.h"
#include "bystander.h"
#include "holdings.h"
#include "threads.h"

namespace offload::test {
namespace {

using Clock = std::chrono::steady_clock;

double since_s(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

/// Ends the process when a round makes no progress: a deadlock has no other end.
class Watchdog {
 public:
  explicit Watchdog(double seconds) : seconds_(seconds), thread_([this] { run(); }) {}
  ~Watchdog() {
    done_ = true;
    thread_.join();
  }
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;

  void progress() { ++steps_; }
  void begin(std::string round) {
    const std::lock_guard lock(mutex_);
    round_ = std::move(round);
    progress();
  }

 private:
  void run() {
    std::uint64_t seen = 0;
    auto since = Clock::now();
    while (!done_) {
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
      if (const std::uint64_t steps = steps_; steps != seen) {
        seen = steps;
        since = Clock::now();
      } else if (since_s(since) > seconds_) {
        const std::lock_guard lock(mutex_);
        std::cout << "FAILED: no call has ended in " << seconds_ << " s: " << round_ << std::endl;
        std::abort();
      }
    }
  }

  const double seconds_;
  std::atomic<std::uint64_t> steps_ = 0;
  std::atomic<bool> done_ = false;
  std::mutex mutex_;
  std::string round_;
  std::thread thread_;
};

class Round {
 public:
  Round(const std::filesystem::path& path, std::uint64_t seed, c10::Device device, bool alone, Watchdog& watchdog)
      : path_(path),
        random_(seed),
        device_(device),
        alone_(alone),
        watchdog_(watchdog),
        plain_(read_archive(path.string())) {
    auto inputs = path;
    calls_ = tools::read_inputs(inputs.replace_extension(".inputs.pt").string(), device,
                                tools::schema_of(plain_, "forward"));
    options_.device = device;
    options_.vram_budget = 1024_GiB;
    const Placement known = preview(read_archive(path.string(), Weights::on_file), options_);
    writes_state_ = known.writes_state;
    lanes_ = writes_state_ ? 1 : pick(1, 4);
    callers_ = writes_state_ ? 1 : 1 << pick(0, 6);
    options_.concurrency = lanes_;
    if (device.is_cuda() || pick(0, 1) == 0) {
      options_.example_calls = examples(calls_);
    }
    options_.vram_budget = 1;
    try {
      wrap(read_archive(path.string(), Weights::on_file), options_);
    } catch (const BudgetError& error) {
      minimum_ = error.minimum_bytes();
    }
    for (const PlacedWeight& weight : known.weights) {
      all_ += weight.bytes;
    }
    options_.vram_budget = some_budget();
    name_ = path.stem().string() + ", budget " + std::to_string(*options_.vram_budget) + ", " + std::to_string(lanes_) +
            " lanes, " + std::to_string(callers_) + " callers, seed " + std::to_string(seed);
    watchdog_.begin(name_);
    module_.emplace(load(path.string(), options_));
  }

  const std::string& name() const { return name_; }

  /// The longest call, in medians for each caller that shares its lane; 0 where there were too few to tell.
  double longest_wait() const { return longest_wait_; }

  /// What was done beside the calls, and how often.
  std::map<std::string, int> done_beside() const {
    return bystander_ ? bystander_->done() : std::map<std::string, int>{};
  }

  /// What went wrong; empty when nothing did.
  std::string run() {
    Reference reference(plain_, device_);
    std::vector<c10::IValue> expected;
    const std::size_t count = writes_state_ ? 3 * calls_.size() : calls_.size();
    for (std::size_t i = 0; i < count; ++i) {
      expected.push_back(reference.run("forward", calls_[i % calls_.size()]).deepcopy());
    }
    std::vector<std::uint64_t> seeds;
    for (int i = 0; i < callers_; ++i) {
      seeds.push_back(random_());
    }
    if (!writes_state_ && !alone_) {
      Options options = options_;
      options.vram_budget = some_budget();
      bystander_.emplace(path_, options, calls_, expected, random_());
    }
    std::atomic<bool> calling = true;
    std::thread owner([&] { change_budgets(calling); }); // random_ is his from here on
    std::thread beside([&] { act_beside(calling); });
    in_parallel(callers_, [&](int caller) {
      at::set_num_threads(1); // a setting of each thread, and products round by it
      try {
        writes_state_ ? call_in_turn(expected) : call_at_random(seeds[caller], expected);
      } catch (const std::exception& error) {
        tell(std::string("unexpected: ") + error.what());
      }
    });
    calling = false;
    owner.join();
    beside.join();
    measure_waits();
    module_.reset();
    return wrong_;
  }

 private:
  int pick(int from, int to) { return std::uniform_int_distribution<int>(from, to)(random_); }

  std::uint64_t some_budget() {
    return pick(0, 2) == 0 ? minimum_ : minimum_ + std::uniform_int_distribution<std::uint64_t>(0, 2 * all_)(random_);
  }

  void tell(const std::string& what) {
    const std::lock_guard lock(mutex_);
    wrong_ += (wrong_.empty() ? "" : "; ") + what;
  }

  void call_in_turn(const std::vector<c10::IValue>& expected) {
    for (std::size_t i = 0; i < expected.size(); ++i) {
      const std::string difference = tools::first_difference(module_->forward(calls_[i % calls_.size()]), expected[i]);
      watchdog_.progress();
      if (!difference.empty()) {
        tell("call " + std::to_string(i) + ": " + difference);
      }
    }
  }

  void call_at_random(std::uint64_t seed, const std::vector<c10::IValue>& expected) {
    std::mt19937_64 random(seed);
    std::optional<c10::Stream> stream;
    if (device_.is_cuda()) {
      stream = c10::cuda::getStreamFromPool(false, device_.index());
    }
    const c10::cuda::OptionalCUDAStreamGuard guard(stream);
    Module copy = *module_;
    const int calls = std::max(4, 64 / callers_);
    for (int i = 0; i < calls; ++i) {
      const std::size_t which = random() % expected.size();
      const std::uint64_t mood = random() % 16;
      if (mood == 0) {
        call_wrongly(copy);
      } else if (mood == 1) {
        copy = *module_; // the old handle goes
      } else if (mood == 2) {
        std::ostringstream text;
        text << copy.placement() << copy.stats();
      }
      const auto begin = Clock::now();
      may_be_refused([&] {
        const std::string difference = tools::first_difference(copy.forward(calls_[which]), expected[which]);
        const double took = since_s(begin);
        if (!difference.empty()) {
          tell("call " + std::to_string(which) + ": " + difference);
        }
        const std::lock_guard lock(mutex_);
        took_.push_back(took);
      });
      watchdog_.progress();
    }
  }

  void call_wrongly(Module& module) {
    try {
      module.forward({c10::IValue("none"), c10::IValue("of"), c10::IValue("these"), c10::IValue("is"),
                      c10::IValue("an"), c10::IValue("argument")});
      tell("six strings were taken for arguments");
    } catch (const InputError&) {
    }
  }

  /// Runs `step`, which may throw where the system is made to refuse memory.
  template <typename Step>
  void may_be_refused(Step step) {
    try {
      step();
    } catch (const Error& error) { // of no kind of its own
      if (typeid(error) != typeid(Error) || !bystander_ || !bystander_->has_refused()) {
        throw;
      }
    }
  }

  void act_beside(const std::atomic<bool>& calling) {
    at::set_num_threads(1);
    while (bystander_ && calling) {
      try {
        if (const std::string wrong = bystander_->act(*module_); !wrong.empty()) {
          tell("beside: " + wrong);
        }
      } catch (const std::exception& error) {
        tell(std::string("unexpected, beside: ") + error.what());
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
  }

  void change_budgets(const std::atomic<bool>& calling) {
    at::set_num_threads(1);
    while (calling) {
      const std::uint64_t budget = some_budget();
      try {
        may_be_refused([&] { module_->set_vram_budget(budget); });
      } catch (const BudgetError& error) {
        if (budget >= minimum_ && !device_.is_cuda()) { // on a GPU, calls may have shown that they need more
          tell("budget " + std::to_string(budget) + " was refused: " + error.what());
        }
      }
      try {
        module_->set_vram_budget(minimum_ / 2);
        tell("half the smallest budget was taken");
      } catch (const BudgetError&) {
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
      may_be_refused([&] { module_->release(); });
    }
  }

  /// Callers are served in the order in which they come: each waits for those before it.
  void measure_waits() {
    if (took_.size() >= 64) {
      std::sort(took_.begin(), took_.end());
      const double sharing = std::max(1.0, static_cast<double>(callers_) / lanes_);
      longest_wait_ = took_.back() / (took_[took_.size() / 2] * sharing);
    }
  }

  const std::filesystem::path path_;
  std::mt19937_64 random_;
  const c10::Device device_;
  const bool alone_; // nothing is done beside the calls
  Watchdog& watchdog_;
  torch::jit::Module plain_;
  std::vector<Call> calls_;
  Options options_;
  bool writes_state_ = false;
  int lanes_ = 1;
  int callers_ = 1;
  std::uint64_t minimum_ = 0;
  std::uint64_t all_ = 0;
  std::string name_;
  std::optional<Module> module_;
  std::optional<Bystander> bystander_;
  std::mutex mutex_; // wrong_, took_
  std::string wrong_;
  std::vector<double> took_;
  double longest_wait_ = 0;
};

int soak(const std::vector<std::filesystem::path>& models, c10::Device device, double seconds, std::uint64_t seed,
         std::uint64_t rounds, bool waits) {
  const auto begin = Clock::now();
  Watchdog watchdog(120);
  std::uint64_t done = 0;
  int failures = 0;
  double longest_wait = 0;
  std::map<std::string, int> beside;
  std::optional<Holdings> before; // after some rounds: libraries keep what they need once
  while (rounds > 0 ? done < rounds : since_s(begin) < seconds) {
    const std::uint64_t round_seed = seed + done;
    const auto& path = models[std::mt19937_64(round_seed)() % models.size()];
    std::string name = path.stem().string() + ", seed " + std::to_string(round_seed);
    std::string wrong;
    try {
      Round round(path, round_seed, device, waits, watchdog);
      name = round.name();
      wrong = round.run();
      longest_wait = std::max(longest_wait, round.longest_wait());
      for (const auto& [what, times] : round.done_beside()) {
        beside[what] += times;
      }
      if (waits && round.longest_wait() > 3) {
        wrong += " a call took " + std::to_string(round.longest_wait()) + " medians for each caller of its lane";
      }
    } catch (const std::exception& error) {
      wrong = error.what();
    }
    if (!wrong.empty()) {
      std::cout << "FAILED: " << name << ": " << wrong << std::endl;
      ++failures;
    }
    if (++done == models.size()) {
      before = Holdings::now();
    }
  }
  const Holdings after = Holdings::now();
  std::cout << done << " rounds from seed " << seed << ", " << failures << " failures; " << format_bytes(after.resident)
            << ", " << after.threads << " threads, " << after.descriptors << " descriptors; the longest call took "
            << longest_wait << " medians for each caller of its lane";
  for (const auto& [what, times] : beside) {
    std::cout << ", " << times << " " << what;
  }
  std::cout << std::endl;
  if (before && (after.threads > before->threads || after.descriptors > before->descriptors)) {
    std::cout << "FAILED: after " << models.size() << " rounds there were " << before->threads << " threads, "
              << before->descriptors << " descriptors" << std::endl;
    ++failures;
  }
  if (before && done >= 4 * models.size() && after.resident > before->resident * 5 / 4 + 64_MiB) {
    std::cout << "FAILED: after " << models.size() << " rounds it was " << format_bytes(before->resident) << std::endl;
    ++failures;
  }
  return failures == 0 ? tools::kDone : tools::kWrongResult;
}

} // namespace
} // namespace offload::test

int main(int argc, char** argv) {
  CLI::App app{"Calls models of some folders under random budgets from random numbers of threads."};
  std::vector<std::string> folders;
  std::string device = "cpu";
  double seconds = 60;
  std::uint64_t seed = 1;
  std::uint64_t rounds = 0;
  bool waits = false;
  offload::tools::ModelArguments libraries;
  app.add_option("FOLDER", folders)->required();
  app.add_option("--device", device);
  app.add_option("--seconds", seconds, "how long; default: 60");
  app.add_option("--seed", seed, "of the first round; each takes the next; default: 1");
  app.add_option("--rounds", rounds, "how many, instead of --seconds");
  app.add_flag("--waits", waits, "long waits are failures");
  app.add_option("--library", libraries.libraries, "defines operators of the models")->allow_extra_args(false);
  return offload::tools::run_command(app, argc, argv, [&] {
    libraries.load_libraries();
    at::set_num_threads(1); // models are small, and processors shared
    return offload::test::soak(offload::test::models_in(folders), c10::Device(device), seconds, seed, rounds, waits);
  });
}
