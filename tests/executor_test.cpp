// One call, without a session around it.

#include <gtest/gtest.h>

#include <offload/core/promises.h>
#include <offload/runtime/adopt.h>

#include "modules.h"
#include "threads.h"

namespace offload::test {
namespace {

/// A model whose weights have been adopted, all of them streamed; beside others if it is given a transport.
class OnHost {
 public:
  explicit OnHost(const torch::jit::Module& module) : OnHost(module, std::make_shared<Transport>(c10::kCPU, 1, 0)) {
    start();
  }
  OnHost(const torch::jit::Module& module, std::shared_ptr<Transport> transport)
      : OnHost(module, std::move(transport), [] {
          Options options;
          options.device = c10::kCPU;
          return options;
        }()) {}
  ~OnHost() { model_.program = {}; }
  OnHost(const OnHost&) = delete;
  OnHost& operator=(const OnHost&) = delete;

  Made call(const std::vector<c10::IValue>& inputs, std::vector<LeasedStep>* trace = nullptr, int lane = 0) {
    const Request request = make_request(model_.program, c10::kCPU, "forward", inputs, {});
    Executor::How how;
    how.expected = std::make_shared<const Sequence>();
    how.trace = trace;
    return executor().run(lane, request, how);
  }

  /// Streams all that have been adopted.
  void start() { transport_->start(engine().ring()); }

  Executor& executor() { return *adopted_->executor; }
  const Transport& transport() const { return *transport_; }
  Engine& engine() { return *adopted_->engine; }

 private:
  OnHost(const torch::jit::Module& module, std::shared_ptr<Transport> transport, const Options& options)
      : transport_(std::move(transport)),
        model_(examine(module, options, std::nullopt, promise_)),
        adopted_(adopt_weights(model_, *transport_, Owner::shared, nullptr, displaced_)) {
    adopted_->placed->install({std::vector<std::uint64_t>(model_.count()), 2 * kWeightBytes},
                              PlacedModule::Leased::all);
  }

  const std::shared_ptr<Transport> transport_;
  Promise promise_{kHost};
  Model model_;
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
  EXPECT_EQ(made.streamed.steps, Sequence({{0}, {1}, {2}}));
  ASSERT_EQ(trace.size(), 3U);
  EXPECT_EQ(trace[1].weights, Step({1}));
  EXPECT_EQ(trace[1].flops, 2.0 * 3 * kWidth * kWidth);
  EXPECT_EQ(trace[1].rows, 3);
  EXPECT_EQ(trace[1].bytes, 2.0 * 3 * kWidth * 4);
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
  EXPECT_EQ(made.streamed.steps, Sequence({{0}, {1}}));
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
  EXPECT_FALSE(is_within_call_on(model.transport()));
  model.call({at::randn({2, kWidth})});
  EXPECT_FALSE(is_within_call_on(model.transport()));
}

/// Their weights share a ring: each call gets those of its own module, whoever came and went.
TEST(Executor, ModulesOfOneTransportStreamThroughOneRing) {
  const auto transport = std::make_shared<Transport>(c10::kCPU, 3, 0);
  const auto x = at::randn({3, kWidth});
  std::vector<at::Tensor> expected;
  std::vector<std::unique_ptr<OnHost>> models;
  const auto add = [&](int weights) {
    const torch::jit::Module module = make(weights, chain(weights));
    expected.push_back(Reference(module.deepcopy(), c10::kCPU).run("forward", {x}).toTensor());
    models.push_back(std::make_unique<OnHost>(module, transport));
    transport->stop();
  };
  const auto expect_right = [&] {
    models.back()->start();
    in_parallel(static_cast<int>(models.size()), [&](int i) {
      for (int call = 0; call < 5; ++call) {
        const Made made = models[i]->call({x}, nullptr, i);
        EXPECT_TRUE(made.output && made.output->toTensor().equal(expected[i])) << "module " << i;
      }
    });
    transport->stop();
  };
  add(3);
  add(5);
  add(2);
  EXPECT_EQ(models[2]->engine().first_in_ring(), models[1]->engine().first_in_ring() + 6) << "five, and a bias";
  expect_right();
  models.erase(models.begin() + 1);
  expected.erase(expected.begin() + 1);
  expect_right();
  add(4);
  EXPECT_LT(models[2]->engine().first_in_ring(), models[1]->engine().first_in_ring())
      << "in the place of the one that went";
  expect_right();
}

} // namespace
} // namespace offload::test
