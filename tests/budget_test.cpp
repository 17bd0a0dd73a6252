// What modules are given by default, when the system has as much memory as a test says.

#include <ATen/ops/from_blob.h>
#include <ATen/ops/randn.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>

#include <offload/core/promises.h>

#include "fake_system.h"
#include "holdings.h"
#include "modules.h"
#include "temporary_file.h"
#include "threads.h"

namespace offload::test {
namespace {

constexpr int kWeights = 4;
constexpr std::uint64_t kModel = kWeights * kWeightBytes;
constexpr std::uint64_t kMargin = 512_MiB; // left to others by default
constexpr std::uint64_t kSmall = kWidth * 4;

class DefaultBudget : public testing::Test {
 protected:
  DefaultBudget() { make(kWeights, chain(kWeights)).save(file_.path()); }

  Module load_by_default() const {
    Options options;
    options.device = kDevice;
    return load(file_.path(), options);
  }
  static std::uint64_t given(const Module& module) { return module.placement().budget.vram; }

  const FakeSystem system_;
  const TemporaryFile file_;
};

TEST_F(DefaultBudget, IsTheSmallestWhereLittleIsFree) {
  system_.set_available(kMargin);
  EXPECT_EQ(given(load_by_default()), kWeightBytes + kSmall);
  system_.set_available(3_MiB);
  Module module = load_by_default();
  EXPECT_EQ(given(module), kWeightBytes + kSmall);
  module.forward({rows()});
}

TEST_F(DefaultBudget, IsRefusedWithWhatIsFree) {
  system_.set_available(640_KiB);
  try {
    load_by_default();
    FAIL() << "more was given than is free";
  } catch (const BudgetError& error) {
    EXPECT_NE(std::string(error.what()).find("none was given, and 640 KiB are free"), std::string::npos)
        << error.what();
    EXPECT_EQ(error.minimum_bytes(), kWeightBytes + kSmall);
  }
  EXPECT_EQ(Promise::outstanding(kHost), 0U) << "of a module that was refused";
}

TEST_F(DefaultBudget, IsWhatOthersHaveNotBeenPromised) {
  constexpr std::uint64_t kFree = 10_MiB;
  system_.set_available(kMargin + kFree);
  auto first = std::make_unique<Module>(load_by_default());
  EXPECT_EQ(given(*first), kFree);
  EXPECT_EQ(Promise::outstanding(kHost), kModel) << "it will take no more";
  Module second = load_by_default();
  EXPECT_EQ(given(second), kFree - kModel);
  EXPECT_EQ(Promise::outstanding(kHost), 2 * kModel);
  Module third = load_by_default();
  EXPECT_EQ(given(third), kFree - 2 * kModel);
  EXPECT_LE(Promise::outstanding(kHost), kFree);
  Module fourth = load_by_default();
  EXPECT_EQ(given(fourth), kWeightBytes + kSmall) << "the smallest";

  const std::uint64_t before = Promise::outstanding(kHost);
  second.forward({rows()});
  EXPECT_EQ(Promise::outstanding(kHost), before - kModel) << "what is taken is not promised any more";
  second.set_vram_budget(kWeightBytes + kSmall);
  EXPECT_LE(Promise::outstanding(kHost), before - kModel + kWeightBytes);
  second.set_vram_budget(kFree);
  const std::uint64_t taken = Promise::outstanding(kHost);
  second.release();
  EXPECT_EQ(Promise::outstanding(kHost), taken) << "others may have what was released";
  second.forward({rows()});
  EXPECT_EQ(Promise::outstanding(kHost), taken);
  const std::uint64_t rest = Promise::outstanding(kHost);
  first.reset();
  EXPECT_EQ(Promise::outstanding(kHost), rest - kModel);
}

/// They are honoured, whatever is free.
TEST_F(DefaultBudget, CountsBudgetsThatWereGiven) {
  system_.set_available(kMargin + 3_MiB);
  const Module module = load(file_.path(), options_for(kModel + kSmall));
  EXPECT_EQ(given(module), kModel + kSmall);
  EXPECT_EQ(Promise::outstanding(kHost), kModel);
  EXPECT_EQ(given(load_by_default()), kWeightBytes + kSmall);
}

/// A wrapped module's weights are used where they are: they take no memory, whatever is free.
TEST_F(DefaultBudget, HoldsWhatIsInMemoryAlready) {
  system_.set_available(kMargin);
  constexpr int kMany = 32;
  const torch::jit::Module module = make(kMany, chain(kMany));
  Reference reference(module.deepcopy(), kDevice);
  const at::Tensor x = rows();
  const c10::IValue expected = reference.run("forward", {x});
  Options options;
  options.device = kDevice;
  const std::uint64_t before = Holdings::now().resident;
  Module wrapped = wrap(module, options);
  EXPECT_EQ(given(wrapped), kMany * kWeightBytes + kSmall);
  EXPECT_EQ(Promise::outstanding(kHost), 0U);
  EXPECT_EQ(tools::first_difference(wrapped.forward({x}), expected), "");
  EXPECT_LT(Holdings::now().resident, before + kMany / 4 * kWeightBytes);
  wrapped.set_vram_budget(wrapped.placement().budget.minimum);
  EXPECT_EQ(tools::first_difference(wrapped.forward({x}), expected), "");
  EXPECT_GT(wrapped.stats().bytes_streamed, 0U);
  wrapped.set_vram_budget(kMany * kWeightBytes * 2);
  EXPECT_EQ(tools::first_difference(wrapped.forward({x}), expected), "");
  EXPECT_EQ(Promise::outstanding(kHost), 0U);
}

/// What begins or ends where no place of ours would is copied, as it was before.
TEST_F(DefaultBudget, OfWeightsThatLieOtherwiseIsForCopiesOfThem) {
  system_.set_available(kMargin + 16_MiB);
  const at::Tensor all = at::randn({kWidth * kWidth + 8});
  torch::jit::Module module("Model");
  module.register_parameter("odd", at::randn({kWidth, 37}), false);
  at::Tensor shifted = at::from_blob(all.mutable_data_ptr<float>() + 3, {kWidth, kWidth});
  module.register_parameter("shifted", shifted, false);
  module.define("def forward(self, x):\n  return torch.linear(x, self.shifted), torch.matmul(x, self.odd)\n");
  Reference reference(module.deepcopy(), kDevice);
  const at::Tensor x = rows();
  const c10::IValue expected = reference.run("forward", {x});
  Options options;
  options.device = kDevice;
  Module wrapped = wrap(module, options);
  all.zero_();
  EXPECT_EQ(tools::first_difference(wrapped.forward({x}), expected), "");
}

TEST_F(DefaultBudget, OfManyLoadsAtOnceIsNoMoreThanThereIs) {
  constexpr std::uint64_t kFree = 24_MiB;
  system_.set_available(kMargin + kFree);
  std::vector<std::unique_ptr<Module>> modules(12);
  in_parallel(4, [&](int thread) {
    for (int i = 0; i < 3; ++i) {
      modules[3 * thread + i] = std::make_unique<Module>(load_by_default());
    }
  });
  EXPECT_LE(Promise::outstanding(kHost), kFree + 6 * (kWeightBytes + kSmall)) << "the last six have the smallest each";
  for (const auto& module : modules) {
    module->forward({rows()});
  }
}

} // namespace
} // namespace offload::test
