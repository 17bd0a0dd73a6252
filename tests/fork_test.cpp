// What a child of fork() finds of its parent's modules, whatever the parent's threads were doing, and that it may have
// modules of its own. Sanitizers do not bear threads on both sides of a fork: tests with them leave these out.

#include <ATen/Parallel.h>
#include <ATen/ops/arange.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <torch/library.h>

#include <csignal>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>

#include <offload/pool.h>

#include "modules.h"
#include "operators.h"
#include "temporary_file.h"
#include "threads.h"

namespace offload::test {
namespace {

constexpr int kWeights = 8;

Latch latch;

TORCH_LIBRARY(fork_test, library) {
  library.def("hold(Tensor x) -> Tensor", [](const at::Tensor& x) {
    latch.pass();
    return x.clone();
  });
}

/// Forks; the child does `work`, and ends as a program does, with all that is static. True when it found what it looked
/// for; one that hangs is ended.
bool right_in_child(const std::function<bool()>& work) {
  std::fflush(nullptr);
  const pid_t child = fork();
  if (child == 0) {
    alarm(60);
    bool right = false;
    try {
      right = work();
    } catch (const std::exception& error) {
      std::fprintf(stderr, "in the child: %s\n", error.what());
    }
    std::exit(right ? 0 : 1);
  }
  int status = 0;
  EXPECT_EQ(waitpid(child, &status, 0), child);
  EXPECT_FALSE(WIFSIGNALED(status)) << "the child was ended by signal " << WTERMSIG(status);
  return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

template <typename Member>
bool is_refused(Member member) {
  try {
    member();
  } catch (const Error& error) {
    return std::string(error.what()).find("in this one") != std::string::npos;
  }
  std::fputs("a member went on in the child\n", stderr);
  return false;
}

class Fork : public testing::Test {
 protected:
  Fork() {
    at::set_num_threads(1); // threads that OpenMP has in the parent are not there in a child
    const torch::jit::Module module = make(kWeights, chain(kWeights));
    module.save(file_.path());
    expected_ = Reference(module.deepcopy(), kDevice).run("forward", {x_}).toTensor();
  }

  Module load_file(int concurrency = 1) const {
    Options options = options_for(budget(3, concurrency));
    options.concurrency = concurrency;
    return load(file_.path(), options);
  }

  bool is_right(Module& module) const { return module.forward({x_}).toTensor().equal(expected_); }

  /// On a GPU no child can have one, once the parent has used it: then it has to be refused.
  bool child_may_load() const {
    try {
      Module own = load_file();
      return kDevice.is_cpu() && is_right(own) && is_right(own);
    } catch (const Error& error) {
      return kDevice.is_cuda() && std::string(error.what()).find("forked from") != std::string::npos;
    }
  }

  const TemporaryFile file_;
  const at::Tensor x_ = rows();
  at::Tensor expected_;
};

/// Destroyed by exit(), in the children as well.
std::optional<Module> forever;

TEST_F(Fork, EveryMemberOfTheParentsModuleSaysWhoseItIs) {
  forever = load_file();
  ASSERT_TRUE(is_right(*forever));
  Module& module = *forever;
  EXPECT_TRUE(right_in_child([&] {
    return is_refused([&] { module.forward({x_}); }) && is_refused([&] { module.run_method("forward", {x_}); }) &&
           is_refused([&] { module.attr("w1"); }) && is_refused([&] { module.schema("forward"); }) &&
           is_refused([&] { module.device(); }) && is_refused([&] { module.placement(); }) &&
           is_refused([&] { module.stats(); }) && is_refused([&] { module.set_vram_budget(budget(4)); }) &&
           is_refused([&] { module.release(); }) && is_refused([&] { module.report(); });
  }));
  EXPECT_TRUE(right_in_child([&] { return child_may_load(); }));
  EXPECT_TRUE(is_right(*forever)) << "the parent goes on";
  forever.reset();
}

TEST_F(Fork, APoolIsItsProcesses) {
  PoolOptions pool_options;
  pool_options.device = kDevice;
  pool_options.vram_budget = budget(4) + (kDevice.is_cuda() ? 256_MiB : 0);
  Options options;
  options.pool = std::make_shared<Pool>(pool_options);
  forever = load(file_.path(), options);
  ASSERT_TRUE(is_right(*forever));
  EXPECT_TRUE(right_in_child([&] {
    return is_refused([&] { forever->forward({x_}); }) && is_refused([&] { load(file_.path(), options); }) &&
           is_refused([&] { options.pool->entries(); }) && is_refused([&] { options.pool->set_vram_budget(1_GiB); });
  }));
  EXPECT_TRUE(right_in_child([&] { return child_may_load(); }));
  EXPECT_TRUE(is_right(*forever)) << "the parent goes on";
  forever.reset();
}

TEST_F(Fork, AChildOfACallIsRefusedAndLoadsItsOwn) {
  torch::jit::Module module = make(2, "def unused(self, x):\n  return x\n");
  module.define("def forward(self, x):\n  return torch.linear(fork_test.hold(torch.linear(x, self.w0)), self.w1)\n",
                std::make_shared<OperatorsOf>("fork_test"));
  forever = wrap(module, options_for(budget(1)));
  const at::Tensor expected = forever->forward({x_}).toTensor();
  latch.hold();
  at::Tensor output;
  std::thread calls([&] { output = forever->forward({x_}).toTensor(); });
  latch.await_reached();
  BlockedThread budgets([] { forever->set_vram_budget(forever->placement().budget.minimum); });
  budgets.await_blocked();
  EXPECT_TRUE(right_in_child([&] {
    return is_refused([&] { forever->forward({x_}); }) && is_refused([] { forever->set_vram_budget(budget(1)); }) &&
           child_may_load();
  }));
  latch.open();
  calls.join();
  budgets.join();
  EXPECT_TRUE(output.equal(expected));
  forever.reset();
}

TEST_F(Fork, AChildOfALoadLoadsItsOwn) {
  Options options = options_for(budget(2));
  options.progress = [](std::uint64_t, std::uint64_t) { latch.pass(); };
  latch.hold();
  std::thread loads([&] { forever = wrap(make(kWeights, chain(kWeights)), options); });
  latch.await_reached();
  EXPECT_TRUE(right_in_child([&] { return child_may_load(); }));
  latch.open();
  loads.join();
  EXPECT_EQ(forever->forward({x_}).toTensor().sizes(), x_.sizes());
  forever.reset();
}

/// On the host tables of which rows are looked up are read beside the calls, for a GPU all weights.
TEST_F(Fork, AChildIsRefusedWhileTheParentsMemoryFills) {
  make(3,
       "def forward(self, x, i):\n"
       "  return torch.linear(x, self.w0) + torch.embedding(self.w1, i) + torch.embedding(self.w2, i)\n")
      .save(file_.path());
  Options options = options_for(budget(3));
  options.progress = [](std::uint64_t done, std::uint64_t total) {
    if (done == total) {
      latch.pass();
    }
  };
  const at::Tensor indices = at::arange(3).to(kDevice);
  latch.hold();
  forever = load(file_.path(), options);
  latch.await_reached();
  EXPECT_TRUE(right_in_child([&] {
    if (!is_refused([&] { forever->forward({x_, indices}); })) {
      return false;
    }
    forever.reset();
    return true;
  }));
  latch.open();
  EXPECT_EQ(forever->forward({x_, indices}).toTensor().sizes(), x_.sizes());
  forever.reset();
}

/// Weights are read where the page cache has them: a child has such mappings from its parent, and the file under them
/// goes when nobody is there who would exchange them.
TEST_F(Fork, AChildOutlivesTheFileOfItsParentsModule) {
  for (const bool emptied : {false, true}) {
    make(kWeights, chain(kWeights)).save(file_.path());
    forever = load_file();
    forever->forward({x_});
    forever->forward({x_});
    EXPECT_TRUE(right_in_child([&] {
      std::ofstream(file_.path(), std::ios::binary | (emptied ? std::ios::trunc : std::ios::in)) << "something else";
      return is_refused([&] { forever->forward({x_}); }) && is_refused([] { forever->attr("w7"); });
    }));
    forever.reset();
  }
}

TEST_F(Fork, ChildrenAreRefusedAndEndWhileThreadsOfTheParentCallAndPlan) {
  forever = load_file(2);
  ASSERT_TRUE(is_right(*forever));
  const std::uint64_t least = forever->placement().budget.minimum;
  std::atomic<bool> done = false;
  std::atomic<int> wrong = 0;
  std::thread forks([&] {
    for (int i = 0; i < 12; ++i) {
      wrong += right_in_child([&] {
        const bool refused = is_refused([&] { forever->forward({x_}); }) && is_refused([] { forever->stats(); });
        if (i % 2 == 0) {
          forever.reset();
        }
        return refused;
      })
                   ? 0
                   : 1;
    }
    done = true;
  });
  in_parallel(3, [&](int thread) {
    at::set_num_threads(1);
    for (int i = 0; !done; ++i) {
      if (thread == 0) {
        forever->set_vram_budget(least + (i % 5) * kWeightBytes);
      } else {
        wrong += is_right(*forever) ? 0 : 1;
      }
    }
  });
  forks.join();
  EXPECT_EQ(wrong, 0);
  forever.reset();
}

} // namespace
} // namespace offload::test
