// Whatever the system and the driver may refuse is refused, one call after another, at load, in the first call, later,
// and while a budget changes: an offload::Error each time, nothing held afterwards, and a module that works on.

#include <cuda_runtime_api.h>

#include <ATen/Parallel.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/randn.h>
#include <offload/feed/stores.h>
#include <offload/io/file_reader.h>

#include "faults.h"
#include "modules.h"
#include "temporary_file.h"

namespace offload::test {
namespace {

struct Case {
  const char* name;
  int lanes = 1;
  bool example = false;
  std::optional<std::uint64_t> pinned = {};
  std::optional<std::uint64_t> host = {};
  bool on_file = false;
};

std::vector<Case> cases() {
  std::vector<Case> all = {{"lanes", 2}, {"example", 1, true}};
  if (kDevice.is_cuda()) { // on the host nothing is page-locked, and nothing staged
    all.push_back({"staged", 1, false, 4_MiB});
    // Some come to memory at the first call, and the others stay on the file.
    all.push_back({"file", 1, false, {}, kStagingBytes + FileReader::kBytesHeld + 3 * kWeightBytes, true});
  } else {
    all.push_back({"file", 1, false, {}, {}, true});
  }
  return all;
}

constexpr int kLayers = 6;

class Faults : public testing::TestWithParam<Case> {
 protected:
  Faults()
      : model_(make(kLayers + 1, "def forward(self, x, i):\n  x = x + torch.embedding(self.w" +
                                     std::to_string(kLayers) + ", i)\n" +
                                     chain(kLayers).substr(std::string("def forward(self, x):\n").size()))),
        x_(rows()),
        indices_(at::randint(0, kWidth, {3}, at::kLong).to(kDevice)),
        expected_(Reference(model_.deepcopy(), kDevice).run("forward", {x_, indices_}).toTensor()) {
    at::set_num_threads(1);
    model_.save(file_.path());
  }

  Options options(std::uint64_t weights) const {
    Options options = options_for(budget(weights, GetParam().lanes));
    options.concurrency = GetParam().lanes;
    options.pinned_budget = GetParam().pinned;
    options.host_budget = GetParam().host;
    if (GetParam().example) {
      options.example_calls = {{"forward", {x_, indices_}, {}}};
    }
    return options;
  }

  /// The weights, which are in memory already.
  static bool used_where_they_are() { return kDevice.is_cpu() && !GetParam().on_file; }

  Module make_module(const Options& options) const {
    return GetParam().on_file ? load(file_.path(), options) : wrap(model_.deepcopy(), options);
  }

  /// Runs `step`; false when it was refused. What comes as an exception is ours, and says something.
  template <class Step>
  bool attempt(const char* what, Step step) {
    try {
      step();
      return true;
    } catch (const Error& error) {
      EXPECT_GT(std::string(error.what()).size(), 20U) << what << ": " << error.what();
      messages_.emplace_back(error.what());
    } catch (const std::exception& error) {
      ADD_FAILURE() << what << ": not an offload::Error: " << error.what();
    }
    return false;
  }

  void call(Module& module) {
    const at::Tensor output = module.forward({x_, indices_}).toTensor();
    EXPECT_TRUE(output.equal(expected_));
  }

  /// The life of a module. Refusals beyond the one that is armed are failures.
  void live(const Options& options) {
    int refused = 0;
    std::optional<Module> module;
    refused += !attempt("load", [&] { module = make_module(options); });
    if (!module) {
      ASSERT_TRUE(attempt("load again", [&] { module = make_module(options); }));
    }
    refused += !attempt("the first call", [&] { call(*module); });
    refused += !attempt("little budget", [&] { leave_room(*module, 2); });
    for (const char* which : {"the second call", "a call"}) {
      refused += !attempt(which, [&] { call(*module); });
    }
    refused += !attempt("more budget", [&] { leave_room(*module, 3); });
    refused += !attempt("a call under more", [&] { call(*module); });
    EXPECT_FALSE(attempt("a budget below the smallest", [&] { module->set_vram_budget(1); }));
    refused += !attempt("less budget", [&] { leave_room(*module, 2); });
    refused += !attempt("a call under less", [&] { call(*module); });
    refused += !attempt("no memory while it is idle", [&] { module->release(); });
    refused += !attempt("a call that takes it again", [&] { call(*module); });
    // What was fetched ahead when it happened may be reported by the next call; after that all is well.
    faults::disarm();
    refused += !attempt("a call in the end", [&] { call(*module); });
    EXPECT_LE(refused, 2) << testing::PrintToString(messages_);
    ASSERT_TRUE(attempt("and one more", [&] { call(*module); })) << testing::PrintToString(messages_);
  }

  void expect_each_refusal_survived(const Options& options) {
    live(options); // what libraries take once
    faults::reset();
    const auto before = faults::held();
    live(options);
    ASSERT_EQ(faults::held(), before) << "without any fault";
    const auto calls = faults::counts();
    std::uint64_t reported = 0;
    for (const auto& [function, count] : calls) {
      if (function.find("Free") != std::string::npos || function.find("Destroy") != std::string::npos ||
          function == "munmap" || function == "cudaHostUnregister") {
        continue; // what fails there is not reported, and has no remedy
      }
      for (std::uint64_t number = 0; number < count; number += 1 + number / 16) {
        SCOPED_TRACE(function + " number " + std::to_string(number) + " of " + std::to_string(count));
        messages_.clear();
        faults::reset();
        faults::arm(function, number);
        live(options);
        reported += messages_.size() > 1; // one is that of the budget
        EXPECT_EQ(faults::held(), before);
        if (kDevice.is_cuda()) {
          EXPECT_EQ(cudaGetLastError(), cudaSuccess);
        }
        if (HasFatalFailure()) {
          return;
        }
      }
    }
    EXPECT_GT(reported, 0U);
    faults::reset();
  }

  torch::jit::Module model_;
  TemporaryFile file_;
  at::Tensor x_;
  at::Tensor indices_;
  at::Tensor expected_;
  std::vector<std::string> messages_;
};

TEST_P(Faults, AreSurvivedOneByOne) { expect_each_refusal_survived(options(2)); }

TEST_P(Faults, PageLockedIsWhatThePlanSays) {
  const std::uint64_t before = faults::page_locked_bytes();
  {
    Module module = make_module(options(2));
    call(module);
    EXPECT_EQ(faults::page_locked_bytes() - before, module.placement().budget.pinned);
    EXPECT_EQ(module.placement().budget.pinned > 0, kDevice.is_cuda());
  }
  EXPECT_EQ(faults::page_locked_bytes(), before);
}

/// The memory for a new budget is refused, and then that for the one before it, which has been freed.
TEST_P(Faults, OfABudgetAndOfTheOneBeforeLeaveAModuleThatWorks) {
  if (used_where_they_are()) {
    GTEST_SKIP() << "a larger budget takes no memory";
  }
  Module module = make_module(options(2));
  call(module);
  leave_room(module, 2);
  const std::uint64_t little = module.placement().budget.vram;
  faults::reset();
  faults::arm(kDevice.is_cuda() ? "cudaMalloc" : "mmap", 0, 2);
  EXPECT_FALSE(attempt("more budget", [&] { leave_room(module, 100); }));
  EXPECT_TRUE(faults::fired());
  for (const char* which : {"a call", "one more"}) {
    EXPECT_TRUE(attempt(which, [&] { call(module); })) << testing::PrintToString(messages_);
  }
  EXPECT_EQ(module.placement().budget.vram, little);
  faults::reset();
}

/// A call that failed may leave weights placed; the budget that comes then is for the next call, and what it has no
/// room for goes at once.
TEST_P(Faults, OfTheModelLeaveNothingBeyondALowerBudget) {
  if (used_where_they_are()) {
    GTEST_SKIP() << "placing takes no memory";
  }
  Options all = options(kLayers + 2);
  all.example_calls.clear(); // so that the first call places
  Module module = make_module(all);
  const at::Tensor too_wide = at::randn({3, kWidth + 1}).to(kDevice);
  const auto placed = [] {
    const auto held = faults::held();
    const auto found = held.find(kDevice.is_cuda() ? "cudaMalloc" : "mmap");
    return found == held.end() ? 0 : found->second;
  };
  const std::size_t before = placed();
  EXPECT_ANY_THROW(module.forward({too_wide, indices_}));
  EXPECT_GT(placed(), before);
  module.set_vram_budget(module.placement().budget.minimum);
  EXPECT_EQ(placed(), before);
  call(module);
}

INSTANTIATE_TEST_SUITE_P(, Faults, testing::ValuesIn(cases()), [](const auto& drawn) { return drawn.param.name; });

} // namespace
} // namespace offload::test
