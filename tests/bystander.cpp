#include "bystander.h"

#include <ATen/Parallel.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <fstream>
#include <iterator>
#include <mutex>
#include <thread>
#include <utility>

#include <tools/compare.h>

#include "faults.h"
#include "temporary_file.h"

namespace offload::test {
namespace {

/// The first thing that went wrong on any of some threads.
class Verdict {
 public:
  void report(const std::string& wrong) {
    const std::lock_guard lock(mutex_);
    if (first_.empty()) {
      first_ = wrong;
    }
  }
  std::string get() const {
    const std::lock_guard lock(mutex_);
    return first_;
  }

 private:
  mutable std::mutex mutex_;
  std::string first_;
};

/// Longer than between two times that a file can have been changed at.
void let_the_clock_of_files_tick() { std::this_thread::sleep_for(std::chrono::milliseconds(20)); }

#ifdef OFFLOAD_FAULTS
/// Ends what was armed, and counts it if it fired.
class Disarm {
 public:
  explicit Disarm(int& fired) : fired_(fired) {}
  ~Disarm() {
    fired_ += faults::fired() ? 1 : 0;
    faults::disarm();
  }
  Disarm(const Disarm&) = delete;
  Disarm& operator=(const Disarm&) = delete;

 private:
  int& fired_;
};
#endif

constexpr std::uint64_t kEmptied = 0;
constexpr std::uint64_t kWays = 3;

void overwrite(const TemporaryFile& file, const std::string& bytes, std::uint64_t way) {
  if (way == kEmptied) {
    file.write({});
  } else if (way == 1) { // another file takes its name
    const TemporaryFile other(std::string(bytes.size(), 'x'));
    std::filesystem::rename(other.path(), file.path());
  } else { // in place
    std::fstream(file.path(), std::ios::binary | std::ios::in | std::ios::out)
        .write(std::string(bytes.size(), 'x').data(), static_cast<std::streamsize>(bytes.size()));
  }
}

} // namespace

Bystander::Bystander(std::filesystem::path path, Options options, std::vector<Call> calls,
                     std::vector<c10::IValue> expected, std::uint64_t seed)
    : path_(std::move(path)),
      options_(std::move(options)),
      calls_(std::move(calls)),
      expected_(std::move(expected)),
      random_(seed) {}

std::string Bystander::act(Module module) {
  static const std::pair<const char*, std::string (Bystander::*)(Module&)> kActs[] = {
      {"modules that came and went", &Bystander::come_and_go},
      {"files changed", &Bystander::change_the_file},
#ifndef OFFLOAD_SANITIZED // which do not bear threads on both sides of a fork
      {"children", &Bystander::fork_off},
#endif
#ifdef OFFLOAD_FAULTS
      {"refusals armed", &Bystander::refuse_memory},
#endif
  };
  const auto& [name, act] = kActs[random_() % std::size(kActs)];
  ++done_[name];
  return (this->*act)(module);
}

std::string Bystander::call(Module& module, std::size_t which) const {
  which %= calls_.size();
  const std::string difference = tools::first_difference(module.forward(calls_[which]), expected_[which]);
  return difference.empty() ? "" : "call " + std::to_string(which) + ": " + difference;
}

#ifndef OFFLOAD_SANITIZED
std::string Bystander::fork_off(Module& module) {
  const pid_t child = fork();
  if (child == 0) {
    alarm(60);
    try {
      module.forward(calls_[0]);
    } catch (const Error&) {
      _exit(0);
    } catch (...) {
      _exit(2);
    }
    _exit(1);
  }
  int status = 0;
  if (child < 0 || waitpid(child, &status, 0) != child) {
    return std::string("fork: ") + std::strerror(errno);
  }
  return status == 0 ? "" : "a child ended with status " + std::to_string(status);
}
#endif

/// A handle is assigned to and moved from while others call through it, and the module ends with calls at work.
std::string Bystander::come_and_go(Module&) {
  Verdict verdict;
  Module module = load(path_.string(), options_);
  std::atomic<bool> moved = false;
  std::vector<std::thread> callers;
  for (std::size_t caller = 0; caller < 2; ++caller) {
    callers.emplace_back([&, caller] {
      at::set_num_threads(1);
      for (std::size_t i = 0; i < 3; ++i) {
        try {
          verdict.report(call(module, caller + i));
        } catch (const std::exception& error) {
          if (!moved || std::string(error.what()).find("was moved from") == std::string::npos) {
            verdict.report(std::string("a handle that is assigned to: ") + error.what());
          }
        }
      }
    });
  }
  try {
    module = load(path_.string(), options_);
    verdict.report(call(module, 0));
  } catch (const std::exception& error) {
    verdict.report(std::string("another load: ") + error.what());
  }
  moved = true;
  {
    const Module last = std::move(module);
  } // which waits for the calls
  for (std::thread& caller : callers) {
    caller.join();
  }
  return verdict.get();
}

/// Whatever is read of a changed file, a call has the right bits or says so.
std::string Bystander::change_the_file(Module&) {
  std::ifstream original(path_, std::ios::binary);
  const std::string bytes(std::istreambuf_iterator<char>(original), {});
  const TemporaryFile file(bytes);
  let_the_clock_of_files_tick();
  Verdict verdict;
  const std::uint64_t way = random_() % kWays;
  Options options = options_;
  options.map_file = way != kEmptied; // whoever reads a mapping of it gets a signal
  Module module = load(file.path(), options);
  const auto may_be_refused = [&](auto step) {
    try {
      step();
    } catch (const ArchiveError&) {
    } catch (const std::exception& error) {
      verdict.report(std::string("of a changed file: ") + error.what());
    }
  };
  std::vector<std::thread> callers;
  for (std::size_t caller = 0; caller < 2; ++caller) {
    callers.emplace_back([&, caller] {
      at::set_num_threads(1);
      for (std::size_t i = 0; i < 4; ++i) {
        may_be_refused([&] { verdict.report(call(module, caller + i)); });
      }
    });
  }
  let_the_clock_of_files_tick();
  overwrite(file, bytes, way);
  may_be_refused([&] { module.set_vram_budget(*options_.vram_budget + bytes.size()); });
  may_be_refused([&] { verdict.report(call(module, 0)); });
  for (std::thread& caller : callers) {
    caller.join();
  }
  return verdict.get();
}

#ifdef OFFLOAD_FAULTS
/// To whoever asks next; when that is over all is well, for the module that others call, too.
std::string Bystander::refuse_memory(Module& module) {
  std::vector<std::string> functions = {"mmap", "madvise", "pthread_create"};
  if (module.device().is_cuda()) {
    functions.insert(functions.end(), {"cudaMalloc", "cudaHostAlloc", "cudaHostRegister", "cuMemCreate"});
  }
  refused_ = true;
  faults::reset();
  faults::arm(functions[random_() % functions.size()], random_() % 8, 1 + random_() % 2);
  std::string wrong;
  try {
    const Disarm when_done(done_["refusals of memory"]);
    Module other = load(path_.string(), options_);
    wrong = call(other, random_());
    other.set_vram_budget(*options_.vram_budget + 1_MiB);
    wrong += call(other, random_());
  } catch (const BudgetError&) {
    throw;
  } catch (const Error&) {
  }
  constexpr int kReported = 8; // what was fetched ahead meanwhile is reported by calls that come later, on each lane
  for (int i = 0; i <= kReported; ++i) {
    try {
      return wrong + call(module, random_());
    } catch (const Error& error) {
      if (i == kReported) {
        wrong += std::string("after memory was refused: ") + error.what();
      }
    }
  }
  return wrong;
}
#endif

} // namespace offload::test
