// An operator of the user's may keep a weight that it was given, and read it later. Linked twice: for the host, and for
// the first GPU.

#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>
#include <torch/csrc/jit/frontend/resolver.h>
#include <torch/csrc/jit/frontend/sugared_value.h>
#include <torch/library.h>

#include <optional>

#include "modules.h"

namespace offload::test {
namespace {

at::Tensor kept;

TORCH_LIBRARY(kept_lease_test, library) {
  library.def("keep(Tensor weight, Tensor x, bool keeps) -> Tensor",
              [](const at::Tensor& weight, const at::Tensor& x, bool keeps) {
                kept = keeps ? weight : kept;
                return x.clone();
              });
}

struct Resolver : torch::jit::NativeResolver {
  std::shared_ptr<torch::jit::SugaredValue> resolveValue(const std::string& name, torch::jit::GraphFunction& method,
                                                         const torch::jit::SourceRange& where) override {
    return name == "kept_lease_test" ? std::make_shared<torch::jit::BuiltinModule>(name)
                                     : NativeResolver::resolveValue(name, method, where);
  }
};

class KeptLease : public testing::Test {
 protected:
  KeptLease() : module_(make(8, "def unused(self, x):\n  return x\n")) {
    std::string source = "def forward(self, x, keeps: bool):\n";
    for (int i = 0; i < 8; ++i) {
      const std::string weight = "self.w" + std::to_string(i);
      const std::string keeps = i == 3 ? "keeps" : "False";
      source += "  x = torch.linear(kept_lease_test.keep(";
      source.append(weight).append(", x, ").append(keeps).append("), ").append(weight).append(")\n");
    }
    module_.define(source + "  return x\n", std::make_shared<Resolver>());
    expected_ = module_.attr("w3").toTensor().clone();
    pair_.emplace(module_, options_for(budget(9)));
  }
  void TearDown() override { kept = at::Tensor(); }

  void call(bool keeps) {
    const at::Tensor x = rows();
    const c10::IValue expected = pair_->reference.run("forward", {x, false});
    EXPECT_EQ(tools::first_difference(pair_->offloaded.forward({x, keeps}), expected), "");
  }
  /// Calls may bring others meanwhile.
  void expect_kept() const { EXPECT_TRUE(kept.cpu().equal(expected_)) << "somebody has written there"; }

  torch::jit::Module module_;
  at::Tensor expected_;
  std::optional<Pair> pair_;
};

TEST_F(KeptLease, IsReadAndEndsAfterOthersHaveBeenPlaced) {
  for (const std::uint64_t weights : {4U, 8U, 5U}) {
    leave_room(pair_->offloaded, weights);
    call(true);
    call(false);
    expect_kept();
    leave_room(pair_->offloaded, 3); // the same again: where nobody reads, it would stay
    call(false);
    leave_room(pair_->offloaded, 6);
    call(false);
    expect_kept();
    kept = at::Tensor();
    call(false);
    call(false);
  }
}

TEST_F(KeptLease, OutlivesTheModule) {
  for (const std::uint64_t weights : {4U, 8U}) {
    leave_room(pair_->offloaded, weights);
    call(true);
    pair_.emplace(module_, options_for(budget(9)));
    expect_kept();
    kept = at::Tensor();
    call(false);
  }
}

} // namespace
} // namespace offload::test
