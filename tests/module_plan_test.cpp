// What loads and plans of offload::Module say and refuse. Linked twice: for the host, and for the first GPU.

#include <ATen/ops/mul.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/randn.h>
#include <torch/custom_class.h>

#include <algorithm>
#include <sstream>
#include <stdexcept>

#include "modules.h"

namespace offload::test {
namespace {

TEST(Module, ReportsProgressOfALoad) {
  Options options = options_for(budget(2));
  std::vector<std::uint64_t> reported;
  std::uint64_t all = 0;
  options.progress = [&](std::uint64_t done, std::uint64_t total) {
    reported.push_back(done);
    all = total;
  };
  wrap(make(4, chain(4)), options);
  EXPECT_EQ(all, 4 * kWeightBytes + kWidth * 4);
  ASSERT_EQ(reported.size(), 5U);
  EXPECT_TRUE(std::is_sorted(reported.begin(), reported.end()));
  EXPECT_EQ(reported.back(), all);
  options.progress = [](std::uint64_t, std::uint64_t) { throw std::runtime_error("enough"); };
  EXPECT_THROW(wrap(make(4, chain(4)), options), std::runtime_error);
}

/// Which weights a node reads together may be known in the call only; the smallest budget has room for any.
TEST(Module, WhateverTheRunPicksFitsTheSmallestBudget) {
  torch::jit::Module module("Model");
  c10::List<at::Tensor> weights;
  for (int i = 0; i < 4; ++i) {
    weights.push_back(at::randn({kWidth, kWidth}).mul(1.0 / 23));
  }
  module.register_attribute("weights", c10::ListType::ofTensors(), weights);
  module.define(R"(
def forward(self, x, i: int, j: int):
  return torch.linear(x, torch.stack([self.weights[i], self.weights[j]]).sum([0]))
)");
  Options options = options_for(1);
  try {
    wrap(module.deepcopy(), options);
    FAIL() << "one byte was enough";
  } catch (const BudgetError& error) {
    options.vram_budget = error.minimum_bytes();
  }
  EXPECT_EQ(*options.vram_budget, 2 * kWeightBytes + (kDevice.is_cuda() ? 64_MiB : 0));
  Pair pair(module, options);
  const at::Tensor x = rows();
  pair.expect_same({x, 0, 0});
  for (int i = 0; i < 4; ++i) {
    for (int j = 0; j < 4; ++j) {
      pair.expect_same({x, i, j});
    }
  }
}

/// A table that stays while it is measured, and streams afterwards: its rows are looked up, and are no lease of it all.
TEST(Module, LookupsInATableThatStayedAreNoLeasesOfIt) {
  const torch::jit::Module module =
      make(3,
           "def forward(self, x, i):\n  x = torch.linear(x, self.w1) + torch.embedding(self.w0, i)\n"
           "  return torch.linear(torch.linear(x, self.w2), self.w0)\n");
  Pair pair(module, options_for(budget(8)));
  const at::Tensor x = rows();
  const at::Tensor indices = at::randint(0, kWidth, {x.size(0)}, at::kLong).to(kDevice);
  pair.expect_same({x, indices});
  leave_room(pair.offloaded, 1);
  const auto used = [&] {
    const Stats stats = pair.offloaded.stats();
    return stats.bytes_streamed - stats.bytes_ahead;
  };
  pair.expect_same({x, indices});
  for (int call = 0; call < 3; ++call) {
    const std::uint64_t before = used();
    const std::uint64_t predicted = pair.offloaded.placement().predicted.streamed_bytes;
    pair.expect_same({x, indices});
    if (pair.offloaded.placement().predicted.streamed_bytes == predicted) { // else it is planned by what calls took
      EXPECT_EQ(used() - before, predicted);
    }
    EXPECT_GT(used() - before, 0U);
    if (kDevice.is_cpu()) { // a GPU's unit of memory has room for one of them
      EXPECT_EQ(used() - before, 3 * kWeightBytes);
    }
  }
}

TEST(Module, AHostBudgetThatIsTooSmallIsNoBudgetError) { // no vram_budget would do
  Options options = options_for(budget(2));
  options.host_budget = 1;
  EXPECT_THROW(wrap(make(2, chain(2)), options), InputError);
}

TEST(Module, ProgressIsToldWhereNothingIsBrought) {
  torch::jit::Module module("Nothing");
  module.define("def forward(self, x):\n  return x + x\n");
  Options options = options_for(budget(1));
  std::vector<std::pair<std::uint64_t, std::uint64_t>> reported;
  options.progress = [&](std::uint64_t done, std::uint64_t total) { reported.emplace_back(done, total); };
  const Module offloaded = wrap(module, options);
  EXPECT_EQ(reported, (std::vector<std::pair<std::uint64_t, std::uint64_t>>{{0, 0}}));
}

TEST(Module, PathsThatNameNoFileAreRefused) {
  for (const std::string& path : {std::string(), std::string("a\0b", 3)}) {
    EXPECT_THROW(load(path, options_for(budget(1))), ArchiveError);
  }
}

/// A class of the user's, whose weight nobody but itself sees.
struct Scale final : torch::CustomClassHolder {
  at::Tensor times(const at::Tensor& x) { return at::mul(x, factor); }

  double factor = 3;
};

const auto kScale = torch::class_<Scale>("offload_test", "Scale")
                        .def(torch::init<>())
                        .def("times", &Scale::times)
                        .def_pickle([](const c10::intrusive_ptr<Scale>& scale) { return scale->factor; },
                                    [](double) { return c10::make_intrusive<Scale>(); });

TEST(Module, APlanNamesObjectsThatItCanNotSeeInto) {
  const torch::jit::Module module =
      make(2, "def forward(self, x):\n  return self.one.times(torch.linear(self.two.times(x), self.w0))\n", at::kFloat,
           [](torch::jit::Module& made) {
             for (const char* name : {"one", "two"}) {
               made.register_attribute(name, c10::getCustomClassType<c10::intrusive_ptr<Scale>>(),
                                       c10::IValue(c10::make_intrusive<Scale>()));
             }
           });
  Pair pair(module, options_for(budget(1)));
  pair.expect_same({rows()});
  const Placement placement = pair.offloaded.placement();
  EXPECT_EQ(placement.unseen, std::vector<std::string>(2, "offload_test.Scale"));
  std::ostringstream text;
  text << placement;
  EXPECT_NE(text.str().find("unseen: 2 objects of offload_test.Scale, whose memory is in no figure here"),
            std::string::npos);
}

/// With room for one of its two weights, a loop brings both each time round.
TEST(Module, ALoopIsPlannedAsItRunsBeforeItsFirstCall) {
  if (kDevice.is_cuda()) {
    GTEST_SKIP() << "what a GPU keeps for activations until the first call has room for both";
  }
  Module module = wrap(make(2, R"(
def forward(self, x):
  for i in range(5):
    x = torch.linear(torch.linear(x, self.w0), self.w1)
  return x
)"),
                       options_for(budget(1)));
  const std::uint64_t planned = module.placement().predicted.streamed_bytes;
  EXPECT_EQ(planned, 10 * kWeightBytes);
  module.forward({rows()});
  EXPECT_EQ(module.placement().predicted.streamed_bytes, planned);
}

TEST(Module, NothingStreamsWhenAllFits) {
  Pair pair(make(4, chain(4)), options_for(budget(32)));
  pair.expect_same({rows()}); // is measured, and streams
  const std::uint64_t before = pair.offloaded.stats().bytes_streamed;
  for (int call = 0; call < 5; ++call) {
    pair.expect_same({rows()});
  }
  EXPECT_EQ(pair.offloaded.stats().bytes_streamed, before);
  EXPECT_EQ(pair.offloaded.placement().predicted.streamed_bytes, 0U);
}

} // namespace
} // namespace offload::test
