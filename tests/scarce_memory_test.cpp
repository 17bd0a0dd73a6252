// Host memory that runs out within a call: an error of that call, or its output, and a module that works on.

#include <ATen/Parallel.h>
#include <torch/library.h>

#include <filesystem>
#include <functional>
#include <iostream>
#include <memory>
#include <new>
#include <optional>
#include <string>
#include <vector>

#include <offload/load/archive.h>

#include "modules.h"
#include "operators.h"
#include "scarce.h"
#include "temporary_file.h"

namespace offload::test {
namespace {

int granted = -1; // allocations, to the next call; negative for all
bool ran_out = false;
std::optional<Scarce> scarce;

TORCH_LIBRARY(scarce_memory_test, library) {
  library.def("begin(Tensor x) -> Tensor", [](const at::Tensor& x) {
    const at::Tensor copy = x.clone();
    if (granted >= 0) {
      scarce.emplace(granted, /*once=*/true);
    }
    return copy;
  });
  library.def("end(Tensor x) -> Tensor", [](const at::Tensor& x) {
    ran_out = ran_out || Scarce::ran_out();
    scarce.reset();
    return x.clone();
  });
}

/// Memory is scarce while it reads three of its weights, and two of them once more.
torch::jit::Module reader() {
  torch::jit::Module module = make(8, "def unused(self, x):\n  return x\n");
  module.define(R"(
def forward(self, x):
  x = torch.linear(torch.linear(x, self.w0), self.w1)
  x = scarce_memory_test.begin(x)
  x = torch.linear(torch.linear(torch.linear(x, self.w2), self.w3), self.w4)
  x = torch.linear(torch.linear(x, self.w2), self.w3)
  x = scarce_memory_test.end(x)
  return torch.linear(torch.linear(torch.linear(x, self.w5), self.w6), self.w7)
)",
                std::make_shared<OperatorsOf>("scarce_memory_test"));
  return module;
}

TEST(ScarceMemory, WithinACallLeavesAModuleThatWorks) {
  at::set_num_threads(1); // a setting of each thread, and products round by it
  for (const std::uint64_t weights : {1, 3, 6}) {
    Pair pair(reader(), options_for(budget(weights)));
    const at::Tensor x = rows();
    granted = -1;
    const c10::IValue expected = pair.reference.run("forward", {x});
    pair.expect_same({x});
    pair.expect_same({x});
    int failed = 0;
    int allocations = 0;
    do {
      SCOPED_TRACE(std::to_string(weights) + " weights, allocation " + std::to_string(allocations));
      ran_out = false;
      granted = allocations++;
      try {
        EXPECT_EQ(tools::first_difference(pair.offloaded.forward({x}), expected), "");
      } catch (const std::exception&) { // of ours, of TorchScript, or the allocation's own
        ++failed;
        ran_out = true;
      }
      scarce.reset();
      granted = -1;
      for (int call = 0; call < 2; ++call) {
        try {
          EXPECT_EQ(tools::first_difference(pair.offloaded.forward({x}), expected), "");
        } catch (const Error&) { // memory ran out for what was brought ahead for it
          if (call > 0 || !ran_out) {
            throw;
          }
          ++failed;
        }
      }
    } while (ran_out && !HasFailure());
    EXPECT_GT(failed, 10);
    EXPECT_LE(pair.offloaded.stats().peak_device_bytes, budget(weights));
    std::cout << weights << " weights: " << allocations << " allocations, " << failed << " calls failed\n";
  }
}

/// From the arguments of the call to its output, and where a call or a new budget places weights anew.
TEST(ScarceMemory, AnywhereInACallOrANewBudgetLeavesAModuleThatWorks) {
  at::set_num_threads(1);
  Pair pair(make(6, chain(6)), options_for(budget(3)));
  const at::Tensor x = rows();
  const c10::IValue expected = pair.reference.run("forward", {x});
  pair.expect_same({x});
  const std::uint64_t first = pair.offloaded.placement().budget.vram;
  c10::IValue output;
  struct Work {
    const char* name;
    int stride; // of the allocations that are refused
    std::function<void()> run;
  };
  const std::vector<Work> works = {
      {"a call", 1, [&] { output = pair.offloaded.forward({x}); }},
      {"a new budget", 13, [&] { pair.offloaded.set_vram_budget(first + kWeightBytes); }},
  };
  for (const auto& [name, stride, run] : works) {
    int failed = 0;
    bool refused = true;
    for (int allocations = 0; refused && !HasFailure(); allocations += stride) {
      SCOPED_TRACE(std::string(name) + ", allocation " + std::to_string(allocations));
      {
        const Scarce memory(allocations, /*once=*/true);
        try {
          run();
        } catch (const std::exception&) {
          ++failed;
        }
        refused = Scarce::ran_out();
      }
      EXPECT_TRUE(output.isNone() || tools::first_difference(output, expected).empty());
      output = {};
      try {
        pair.offloaded.forward({x});
      } catch (const Error&) { // copies for this one were asked for when there was no memory
        EXPECT_TRUE(refused);
      }
      for (int call = 0; call < 2; ++call) {
        EXPECT_EQ(tools::first_difference(pair.offloaded.forward({x}), expected), "");
      }
      pair.offloaded.set_vram_budget(first);
    }
    EXPECT_GT(failed, 10);
    std::cout << name << ": " << failed << " failed\n";
  }
}

/// Threads that stage weights, and that read them from a file: where one of them is refused memory, calls that wait for
/// it fail, and the process goes on.
void refuse_all_threads_of_ours(int threads, bool once, int stride) {
  at::set_num_threads(threads); // products round by it
  const TemporaryFile file;
  make(12, chain(12)).save(file.path());
  const at::Tensor x = rows();
  Reference plain(read_archive(file.path()), kDevice);
  const c10::IValue expected = plain.run("forward", {x});
  int failed = 0;
  bool refused = true;
  for (int allocations = 0; refused && !testing::Test::HasFailure(); allocations += stride) {
    SCOPED_TRACE("allocation " + std::to_string(allocations));
    Options options = options_for(budget(3));
    options.host_budget = 26_MiB; // half of the weights stay on the file,
    options.map_file = false;     // and are brought by threads of ours
    std::optional<Module> module;
    {
      const Scarce memory(allocations, once, Scarce::Whose::others);
      try {
        module.emplace(load(file.path(), options));
        for (int call = 0; call < 3; ++call) {
          EXPECT_EQ(tools::first_difference(module->forward({x}), expected), "");
        }
      } catch (const std::exception&) {
        ++failed;
        if (allocations % 2 == 0) {
          module.reset(); // while what was begun is under way
        }
      }
      refused = Scarce::ran_out();
    }
    for (int call = 0; module && call < 4; ++call) {
      try {
        EXPECT_EQ(tools::first_difference(module->forward({x}), expected), "");
      } catch (const Error&) { // what was under way for this one
        EXPECT_LT(call, 2);
      }
    }
  }
  EXPECT_GT(failed, 5);
  std::cout << threads << " threads, " << failed << " failed\n";
  at::set_num_threads(1);
}

TEST(ScarceMemory, OnceOnAnyThreadOfOursLeavesAModuleThatWorks) {
  refuse_all_threads_of_ours(1, /*once=*/true, 3);
  refuse_all_threads_of_ours(2, /*once=*/true, 7);
}

TEST(ScarceMemory, FromSomeAllocationOnAllThreadsOfOursLeavesAModuleThatEnds) {
  refuse_all_threads_of_ours(1, /*once=*/false, 7);
  refuse_all_threads_of_ours(2, /*once=*/false, 3);
}

/// A weight comes in several pieces: where a later one can not be begun with, the module still ends.
TEST(ScarceMemory, InTheMiddleOfAWeightLeavesAModuleThatEnds) {
  at::set_num_threads(2);
  const TemporaryFile file;
  torch::jit::Module wide("Wide");
  for (const char* name : {"w0", "w1"}) {
    wide.register_parameter(name, at::randn({2560, 2560}), false); // 25 MiB
  }
  wide.define("def forward(self, x):\n  return torch.linear(torch.linear(x, self.w0), self.w1)\n");
  wide.save(file.path());
  const at::Tensor x = at::randn({2, 2560});
  Options options = options_for(28_MiB);
  options.map_file = false;
  int failed = 0;
  for (int allocations = 0; allocations < 60; ++allocations) {
    std::optional<Module> module = load(file.path(), options);
    module->forward({x});
    const Scarce memory(allocations, /*once=*/false, Scarce::Whose::others);
    try {
      module->forward({x});
      module->forward({x});
    } catch (const std::exception&) {
      ++failed;
    }
    module.reset();
  }
  EXPECT_GT(failed, 5);
  at::set_num_threads(1);
}

/// Weights that stay on a file can not be placed anew when that has changed: an error, and not an attempt without end.
TEST(ScarceMemory, BeforeTheFileChangesIsAnError) {
  at::set_num_threads(1);
  const TemporaryFile file;
  make(6, chain(6)).save(file.path());
  const at::Tensor x = rows();
  int changed = 0;
  for (int allocations = 0; allocations < 240; ++allocations) {
    Module module = load(file.path(), options_for(budget(3)));
    module.forward({x});
    try {
      const Scarce memory(allocations, /*once=*/true);
      module.forward({x});
    } catch (const std::exception&) {
    }
    std::filesystem::last_write_time(file.path(), std::filesystem::file_time_type::clock::now());
    try {
      module.forward({x});
    } catch (const Error&) {
      ++changed;
    }
  }
  EXPECT_GT(changed, 0);
}

} // namespace
} // namespace offload::test
