// One call, without a session around it.

#include <gtest/gtest.h>

#include <offload/core/promises.h>
#include <offload/runtime/adopt.h>

#include "modules.h"

namespace offload::test {
namespace {

/// A model whose weights have been adopted, all of them streamed.
class OnHost {
 public:
  explicit OnHost(const torch::jit::Module& module)
      : OnHost(module, [] {
          Options options;
          options.device = c10::kCPU;
          return options;
        }()) {}
  ~OnHost() { model_.program = {}; }
  OnHost(const OnHost&) = delete;
  OnHost& operator=(const OnHost&) = delete;

  Made call(const std::vector<c10::IValue>& inputs, std::vector<LeasedStep>* trace = nullptr) {
    const Request request = make_request(model_.program, c10::kCPU, "forward", inputs, {});
    Executor::How how;
    how.expected = std::make_shared<const Sequence>();
    how.trace = trace;
    return executor().run(0, request, how);
  }

  Executor& executor() { return *adopted_->executor; }
  Engine& engine() { return *adopted_->engine; }

 private:
  OnHost(const torch::jit::Module& module, const Options& options)
      : model_(examine(module, options, std::nullopt, promise_)),
        gate_(std::make_shared<LaneGate>(model_.lanes)),
        adopted_(adopt_weights(model_, gate_, Owner::shared, nullptr, displaced_)) {
    adopted_->placed->install({std::vector<std::uint64_t>(model_.count()), 2 * kWeightBytes},
                              PlacedModule::Leased::all);
  }

  Promise promise_{kHost};
  Model model_;
  std::shared_ptr<LaneGate> gate_;
  Displaced displaced_;
  std::unique_ptr<Adopted> adopted_;
};

TEST(Executor, MakesACallAndTellsWhatItLeased) {
  const torch::jit::Module module = make(3, chain(3));
  const at::Tensor x = at::randn({3, kWidth});
  const at::Tensor expected = Reference(module.deepcopy(), c10::kCPU).run("forward", {x}).toTensor();
  OnHost model(module.deepcopy());
  std::vector<LeasedStep> trace;
  const Made made = model.call({x}, &trace);
  ASSERT_TRUE(made.output);
  EXPECT_TRUE(made.ended);
  EXPECT_TRUE(made.output->toTensor().equal(expected));
  EXPECT_FALSE(model.engine().owns(made.output->toTensor().data_ptr()));
  EXPECT_EQ(made.executed, Sequence({{0}, {1}, {2}}));
  ASSERT_EQ(trace.size(), 3U);
  EXPECT_EQ(trace[1].weights, Step({1}));
  EXPECT_EQ(trace[1].flops, 2.0 * 3 * kWidth * kWidth);
}

TEST(Executor, GivesWeightsBackWhenTheModelRaises) {
  const torch::jit::Module module = make(2, R"(
def forward(self, x, fail: bool):
  x = x + torch.linear(x, self.w0, self.little)
  assert not fail, "on purpose"
  return x + torch.linear(x, self.w1, self.little)
)");
  OnHost model(module.deepcopy());
  const at::Tensor x = at::randn({2, kWidth});
  for (int round = 0; round < 5; ++round) { // more often than the ring has places
    EXPECT_THROW(model.call({x, true}), std::exception);
  }
  const Made made = model.call({x, false});
  ASSERT_TRUE(made.output);
  EXPECT_EQ(made.executed, Sequence({{0}, {1}}));
}

TEST(Executor, CopiesAWeightThatIsReturned) {
  const torch::jit::Module module = make(1, "def forward(self, x):\n  return self.w0.t(), x\n");
  const at::Tensor expected = module.attr("w0").toTensor().clone();
  OnHost model(module.deepcopy());
  const Made made = model.call({at::randn({2, kWidth})});
  ASSERT_TRUE(made.output);
  const at::Tensor returned = made.output->toTuple()->elements()[0].toTensor();
  EXPECT_FALSE(model.engine().owns(returned.data_ptr()));
  EXPECT_TRUE(returned.equal(expected.t()));
}

TEST(Executor, KnowsNoCallAroundAThreadThatMakesNone) {
  OnHost model(make(1, chain(1)));
  EXPECT_FALSE(model.executor().is_within_call());
  model.call({at::randn({2, kWidth})});
  EXPECT_FALSE(model.executor().is_within_call());
}

} // namespace
} // namespace offload::test
