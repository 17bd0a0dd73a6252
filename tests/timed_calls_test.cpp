// Plans know what calls have taken.

#include <gtest/gtest.h>
#include <torch/library.h>

#include <chrono>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <thread>

#include <offload/module.h>

#include "modules.h"
#include "operators.h"

namespace offload::test {
namespace {

constexpr int kPauses = 4;
constexpr double kPauseUs = 4000; // for each row

/// What nobody could know from the graph.
TORCH_LIBRARY(timed_calls_test, library) {
  library.def("pause(Tensor x) -> Tensor", [](const at::Tensor& x) {
    std::this_thread::sleep_for(std::chrono::microseconds(static_cast<std::int64_t>(kPauseUs) * x.size(0)));
    return x.clone();
  });
}

/// The first pause comes before all weights.
torch::jit::Module pausing() {
  std::string source = "def forward(self, x):\n";
  for (int i = 0; i < kPauses; ++i) {
    source += "  x = torch.linear(timed_calls_test.pause(x), self.w" + std::to_string(i) + ")\n";
  }
  torch::jit::Module module = make(kPauses, "def unused(self, x):\n  return x\n");
  module.define(source + "  return x\n", std::make_shared<OperatorsOf>("timed_calls_test"));
  return module;
}

class TimedCalls : public testing::TestWithParam<int> {
 protected:
  double predicted_us() { return module_.placement().predicted.time_us; }

  Module module_ = wrap(pausing(), options_for(budget(GetParam())));
};

TEST_P(TimedCalls, ShowWhatStepsCost) {
  const at::Tensor x = rows(2);
  module_.forward({x});
  EXPECT_LT(predicted_us(), kPauseUs) << "the graph does not say";
  for (int call = 0; call < 2; ++call) {
    EXPECT_FALSE(module_.forward({x}).toTensor().cpu().isnan().any().item<bool>()); // and the device is done
  }
  EXPECT_GE(predicted_us(), 2 * kPauses * kPauseUs);
  EXPECT_LT(predicted_us(), 50 * kPauses * kPauseUs);
  const std::uint64_t least = module_.placement().budget.minimum;
  for (const std::uint64_t more : {std::uint64_t{0}, 2 * kWeightBytes, 6 * kWeightBytes}) {
    module_.set_vram_budget(least + more);
    EXPECT_GE(predicted_us(), 2 * kPauses * kPauseUs) << "whatever is resident";
  }
}

TEST_P(TimedCalls, AreThoseThatPlansAreMadeFor) {
  module_.forward({rows(1)});
  for (int call = 0; call < 2; ++call) {
    module_.forward({rows(8)}).toTensor().cpu();
  }
  EXPECT_LT(predicted_us(), kPauseUs) << "calls of another size cost something else";
  for (int call = 0; call < 2; ++call) {
    module_.forward({rows(1)}).toTensor().cpu();
  }
  EXPECT_GE(predicted_us(), kPauses * kPauseUs);
  EXPECT_LT(predicted_us(), 8 * kPauses * kPauseUs);
}

TEST_P(TimedCalls, AreDrawn) {
  using Lane = Timeline::Lane;
  const at::Tensor x = rows(2);
  module_.forward({x}).toTensor().cpu();
  EXPECT_FALSE(module_.recorded_timeline()) << "it was not timed, since plans were made in it";
  for (int call = 0; call < 2; ++call) {
    module_.forward({x}).toTensor().cpu();
  }
  const std::optional<Timeline> timeline = module_.recorded_timeline();
  ASSERT_TRUE(timeline);
  EXPECT_GE(timeline->time_us, 2 * kPauses * kPauseUs);
  EXPECT_GE(timeline->busy_us(Lane::compute) + timeline->busy_us(Lane::host), 2 * kPauses * kPauseUs);
  EXPECT_EQ(timeline->busy_us(Lane::link) > 0, module_.placement().predicted.streamed_bytes > 0);
  std::set<std::string> computed;
  for (const Timeline::Entry& entry : timeline->entries) {
    EXPECT_GE(entry.begin_us, 0);
    EXPECT_LE(entry.begin_us + entry.us, timeline->time_us + 1e-6);
    if (entry.lane == Lane::compute) {
      computed.insert(entry.weights.begin(), entry.weights.end());
    }
  }
  EXPECT_EQ(computed.size(), static_cast<std::size_t>(kPauses)) << "each weight is read in some lap";
}

INSTANTIATE_TEST_SUITE_P(WhereWeightsStay, TimedCalls, testing::Values(1, 3, 8));

} // namespace
} // namespace offload::test
