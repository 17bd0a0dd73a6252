// Graphs that name the CPU, made to run on another device: IR in, IR out.

#include <ATen/ops/ones.h>
#include <gtest/gtest.h>
#include <torch/csrc/jit/api/module.h>

#include <offload/graph/inline_calls.h>
#include <offload/graph/rewrite_devices.h>

#include "ir.h"

namespace offload {
namespace {

/// There may be no device to move tensors to: constants become three ones.
at::Tensor ones_instead(const at::Tensor&) { return at::ones({3}); }

struct Rewritten {
  std::string text;
  std::vector<std::string> reported;
};

Rewritten rewrite(const std::shared_ptr<torch::jit::Graph>& graph, const char* device = "cuda:0") {
  Rewritten rewritten;
  rewrite_devices(graph, c10::Device(device), ones_instead, rewritten.reported);
  graph->lint();
  rewritten.text = graph->toString(false);
  return rewritten;
}

/// `lines` in TorchScript, as the body of a method of x and lengths.
Rewritten rewrite_body(const std::string& lines, const char* device = "cuda:0") {
  torch::jit::Module module("Model");
  module.define("def forward(self, x, lengths, flag: bool):\n  cpu = torch.device('cpu')\n" + lines);
  const auto graph = module.get_method("forward").graph()->copy();
  inline_calls(graph, module);
  return rewrite(graph, device);
}

constexpr const char* kOnDevice = "Device = prim::Constant[value=\"cuda:0\"]";
constexpr const char* kOnHost = "Device = prim::Constant[value=\"cpu\"]";

void expect_all_rewritten(const Rewritten& rewritten) {
  check(rewritten.text, [](FileCheck& c) { c.check(kOnDevice); });
  check(rewritten.text, [](FileCheck& c) { c.check_not(kOnHost); });
}

void expect_untouched(const Rewritten& rewritten) {
  EXPECT_EQ(rewritten.reported, std::vector<std::string>());
  check(rewritten.text, [](FileCheck& c) { c.check_not("cuda:0")->check_not("aten::cpu"); });
}

TEST(RewriteDevices, DeviceConstantsFollowTheModule) {
  const Rewritten rewritten = rewrite_body("  return torch.zeros([2], device=cpu)\n");
  expect_all_rewritten(rewritten);
  EXPECT_EQ(rewritten.reported.size(), 1U);
  expect_untouched(rewrite_body("  return torch.zeros([2], device=cpu)\n", "cpu"));
}

TEST(RewriteDevices, LengthsOfPackedSequencesStayOnTheHost) {
  expect_untouched(rewrite_body("  return torch._pack_padded_sequence(x, lengths.to(cpu), True)\n"));
  expect_untouched(
      rewrite_body("  n, order = torch.sort(lengths.to(cpu), -1, True)\n"
                   "  x = x.index_select(0, order.to(x.device))\n"
                   "  return torch._pack_padded_sequence(x, (n - torch.ones([3], device=cpu)) + 1, True)\n"));
}

/// One constant, used by what has to stay and by what must not.
TEST(RewriteDevices, UsesAreToldApart) {
  const Rewritten rewritten = rewrite_body(
      "  data, sizes = torch._pack_padded_sequence(x + torch.zeros([2], device=cpu), lengths.to(cpu), True)\n"
      "  return data, sizes\n");
  check(rewritten.text, [](FileCheck& c) {
    c.check(kOnDevice)->check(kOnHost)->check("aten::zeros")->check("aten::to(%lengths")->check_not("aten::cpu");
  });
  EXPECT_EQ(rewritten.reported.size(), 1U);
}

TEST(RewriteDevices, BranchesLoopsListsAndTuplesCarryWhatStays) {
  expect_untouched(
      rewrite_body("  if flag:\n    n = lengths.to(cpu)\n  else:\n    n = torch.ones([3], device=cpu)\n"
                   "  return torch._pack_padded_sequence(x, n, True)\n"));
  expect_untouched(
      rewrite_body("  if flag:\n    where = cpu\n  else:\n    where = torch.device('cpu')\n"
                   "  return torch._pack_padded_sequence(x, lengths.to(where), True)\n"));
  expect_untouched(
      rewrite_body("  n = lengths.to(cpu)\n  for i in range(3):\n    n = n + torch.ones([3], device=cpu)\n"
                   "  return torch._pack_padded_sequence(x, n, True)\n"));
  expect_untouched(
      rewrite_body("  both = (x, (lengths.to(cpu), x))\n  values = [both[1][0]]\n"
                   "  return torch._pack_padded_sequence(both[0], values[0], True)\n"));
}

/// An element of a tuple says nothing of the others.
TEST(RewriteDevices, PackedSequencesGoThroughRecurrences) {
  const Rewritten rewritten = rewrite_body(
      "  packed = torch._pack_padded_sequence(x, lengths.to(cpu), True)\n  data, sizes = packed\n"
      "  hidden = torch.zeros([1, 3, 8], device=cpu)\n"
      "  y = torch.lstm(data, sizes, [hidden, hidden], [x, x], True, 1, 0.0, False, False)\n"
      "  again, n = torch._pad_packed_sequence(y[0], sizes, True, 0.0, 4)\n"
      "  return torch._pack_padded_sequence(again, n[torch.arange(3, device=cpu)], True)\n");
  check(rewritten.text, [](FileCheck& c) {
    c.check(kOnDevice)->check(kOnHost)->check("aten::to(%lengths")->check("aten::zeros")->check_not("aten::cpu");
  });
  EXPECT_EQ(rewritten.reported.size(), 1U) << "the hidden state; the indices are those of a tensor on the host";
}

/// Wanted on the host by one operator, and on the device by another.
TEST(RewriteDevices, WhatIsWantedInBothPlacesIsCopied) {
  const Rewritten rewritten = rewrite_body(
      "  n = lengths.to(cpu)\n"
      "  mask = torch.arange(7, device=cpu) < n.unsqueeze(1)\n"
      "  x = x * mask.unsqueeze(-1)\n"
      "  return torch._pack_padded_sequence(x, n, True)\n");
  expect_all_rewritten(rewritten);
  check(rewritten.text,
        [](FileCheck& c) { c.check("%n")->check("aten::cpu(%n")->check("aten::_pack_padded_sequence"); });
  ASSERT_FALSE(rewritten.reported.empty());
  EXPECT_NE(rewritten.reported.back().find("for aten::_pack_padded_sequence -> cpu"), std::string::npos)
      << rewritten.reported.back();
}

/// Scalars of the host are taken by operators on any device: a mask as wide as the longest.
TEST(RewriteDevices, AScalarOfWhatStaysMayMeetTheDevice) {
  const Rewritten rewritten = rewrite_body(
      "  n = lengths.to(cpu)\n  x = x * n.max()\n"
      "  return torch._pack_padded_sequence(x, n, True)\n");
  expect_untouched(rewritten);
}

TEST(RewriteDevices, WhatIsOnTheDeviceToBeginWithIsCopied) {
  const Rewritten rewritten = rewrite_body("  return torch._pack_padded_sequence(x, lengths, True)\n");
  check(rewritten.text, [](FileCheck& c) { c.check("aten::cpu(%lengths")->check("aten::_pack_padded_sequence"); });
}

TEST(RewriteDevices, ConstantTensorsStayWhereTheyHaveTo) {
  const auto graph = std::make_shared<torch::jit::Graph>();
  torch::jit::Value* x = graph->addInput("x");
  torch::jit::Value* lengths = graph->insertConstant(at::ones({7}).to(at::kLong));
  torch::jit::Value* packed =
      graph->insert(c10::Symbol::fromQualString("aten::_pack_padded_sequence"), {x, lengths, true});
  graph->registerOutput(packed);
  const Rewritten rewritten = rewrite(graph);
  EXPECT_EQ(rewritten.reported, std::vector<std::string>());
}

/// `torch.zeros(256) + x` fails on a device as it stands.
TEST(RewriteDevices, WhatIsMadeWithoutADeviceIsMadeWhereItIsUsed) {
  const Rewritten rewritten = rewrite_body("  return x + torch.zeros([256])\n");
  check(rewritten.text, [](FileCheck& c) { c.check(kOnDevice)->check("aten::zeros"); });
  EXPECT_EQ(rewritten.reported.size(), 1U);
  expect_untouched(rewrite_body("  return x + torch.zeros([]), torch.ones([4]), torch.ones([2]).to(x.device) + x\n"));
  expect_untouched(rewrite_body("  return torch._pack_padded_sequence(x, torch.ones([3], dtype=4), True)\n"));
  expect_untouched(rewrite_body("  return x[torch.randperm(4)], x[torch.arange(3)]\n"));
}

/// It has kernels for the host only, so that its input is there on purpose.
TEST(RewriteDevices, InputsOfOperatorsOfTheHostStay) {
  expect_untouched(rewrite_body("  return torch.histogram(x.to(cpu), 3)\n"));
}

} // namespace
} // namespace offload
