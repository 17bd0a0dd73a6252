// Modules that come and go: many at once, many after another, across fork, exit and dlclose. Each test runs in a
// process of its own.

#include <sys/wait.h>

#include <ATen/Parallel.h>

#include <cstdlib>
#include <optional>
#include <thread>

#include <offload/version.h>

#include "holdings.h"
#include "modules.h"

namespace offload::test {
namespace {

/// Calls a small module under a budget once; true when the output is right.
bool call_one() {
  const torch::jit::Module module = make(4, chain(4));
  Reference reference(module.deepcopy(), kDevice);
  Module offloaded = wrap(module.deepcopy(), options_for(budget(2)));
  const at::Tensor x = rows();
  return offloaded.forward({x}).toTensor().equal(reference.run("forward", {x}).toTensor());
}

TEST(Life, TenModulesLiveSideBySide) {
  std::vector<std::unique_ptr<Pair>> pairs;
  for (int i = 0; i < 10; ++i) {
    pairs.push_back(std::make_unique<Pair>(make(3 + i % 3, chain(3 + i % 3)), options_for(budget(2))));
  }
  for (int call = 0; call < 5; ++call) {
    for (const auto& pair : pairs) {
      pair->expect_same({rows(1 + call)});
    }
    if (pairs.size() > 5) {
      pairs.erase(pairs.begin() + call); // the others do not notice
    }
  }
}

TEST(Life, AThousandModulesLeaveNothingBehind) {
  at::set_num_threads(1);
  const torch::jit::Module module = make(3, chain(3));
  const at::Tensor x = rows();
  const auto load_and_call = [&](int times) {
    for (int i = 0; i < times; ++i) {
      Module offloaded = wrap(module.deepcopy(), options_for(budget(2)));
      offloaded.forward({x});
    }
  };
  load_and_call(100); // what libraries keep once
  const Holdings before = Holdings::now();
  load_and_call(900);
  const Holdings after = Holdings::now();
  EXPECT_LE(after.threads, before.threads);
  EXPECT_LE(after.descriptors, before.descriptors);
  EXPECT_LT(after.resident, before.resident + 32_MiB) << "3 MiB of weights a module";
}

TEST(Life, AProcessMayForkBeforeItsFirstModule) {
  at::set_num_threads(1);
  const torch::jit::Module parents = make(1, chain(1)); // torch is in use, the device is not
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    bool right = false;
    try {
      right = call_one();
    } catch (const std::exception& error) {
      std::fprintf(stderr, "%s\n", error.what());
    }
    _exit(right ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
  EXPECT_TRUE(call_one());
}

TEST(LifeDeathTest, AModuleMayOutliveMain) {
  GTEST_FLAG_SET(death_test_style, "threadsafe"); // the statement runs in a process that has done nothing else
  EXPECT_EXIT(
      {
        static std::optional<Module> forever = wrap(make(4, chain(4)), options_for(budget(2)));
        forever->forward({rows()}); // weights for the next call are under way when the process ends
        std::exit(0);
      },
      testing::ExitedWithCode(0), "");
}

TEST(LifeDeathTest, AThreadMayEndTheProcessWhileOthersCall) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(
      {
        Module offloaded = wrap(make(4, chain(4)), options_for(budget(2)));
        const at::Tensor x = rows();
        offloaded.forward({x});
        std::thread([copy = offloaded, x]() mutable {
          while (true) {
            copy.forward({x});
          }
        }).detach();
        std::quick_exit(0);
      },
      testing::ExitedWithCode(0), "");
}

TEST(Life, TheVersionIsThatOfTheHeader) {
  EXPECT_EQ(version(), std::to_string(OFFLOAD_VERSION_MAJOR) + "." + std::to_string(OFFLOAD_VERSION_MINOR) + "." +
                           std::to_string(OFFLOAD_VERSION_PATCH));
}

} // namespace
} // namespace offload::test
