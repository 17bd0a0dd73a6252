// A weight that is read where nobody leased it: an error with its name, never a crash, whatever operator reads.

#include <ATen/ops/randn.h>
#include <torch/csrc/jit/api/module.h>

#include <array>

#include "modules.h"

namespace offload::test {
namespace {

/// Expressions of a weight `w`, [512, 512], that read it.
constexpr std::array kReaders = {
    "w + 1",
    "w - x",
    "w * 2",
    "w / 3",
    "-w",
    "w.abs()",
    "w.exp()",
    "w.log()",
    "w.sqrt()",
    "w.sin()",
    "w.tanh()",
    "w.sigmoid()",
    "torch.relu(w)",
    "torch.gelu(w)",
    "torch.selu(w)",
    "torch.softmax(w, 1)",
    "torch.log_softmax(w, 0)",
    "torch.layer_norm(w, [512])",
    "torch.batch_norm(w, None, None, None, None, True, 0.1, 1e-5, False)",
    "torch.group_norm(w, 4)",
    "w.clamp(0, 1)",
    "w.round()",
    "w.floor()",
    "w.sign()",
    "w ** 2",
    "w.erf()",
    "w.sum()",
    "w.sum(0)",
    "w.mean(1)",
    "w.prod()",
    "w.max()",
    "w.min()",
    "w.argmax(1)",
    "w.std()",
    "w.var(0)",
    "w.norm()",
    "w.cumsum(0)",
    "w.cumprod(1)",
    "w.logsumexp(1)",
    "w.any()",
    "w.all()",
    "w.sort(0)[0]",
    "w.argsort(1)",
    "torch.topk(w, 3)[0]",
    "w.kthvalue(2)[0]",
    "w.median()",
    "torch._unique2(w)[0]",
    "w.nonzero()",
    "w == x",
    "w > 0",
    "w.isnan()",
    "torch.where(w > 0, w, x)",
    "x.masked_fill(w > 0, 0.0)",
    "torch.masked_select(w, x > 0)",
    "w @ x",
    "x @ w",
    "x @ w.t()",
    "torch.mm(w, x)",
    "torch.matmul(x, w)",
    "torch.addmm(x, x, w)",
    "torch.addmv(x[0], w, x[0])",
    "torch.bmm(w.unsqueeze(0), x.unsqueeze(0))",
    "torch.baddbmm(x.unsqueeze(0), x.unsqueeze(0), w.unsqueeze(0))",
    "torch.linear(x, w)",
    "torch.bilinear(x, x, w.view(2, 512, 256).view(1, 512, 512), None)",
    "torch.einsum('ij,kj->ik', [x, w])",
    "torch.tensordot(x, w, [1], [0])",
    "torch.outer(w[0], x[0])",
    "torch.dot(w[0], x[0])",
    "torch.conv1d(x.unsqueeze(0), w.unsqueeze(2))",
    "torch.conv2d(x.view(1, 512, 16, 32), w.view(512, 512, 1, 1))",
    "torch.conv_transpose1d(x.unsqueeze(0), w.unsqueeze(2))",
    "torch.embedding(w, torch.tensor([1, 2]).to(x.device))",
    "torch.index_select(w, 0, torch.tensor([1, 2]).to(x.device))",
    "w[torch.tensor([1, 2]).to(x.device)]",
    "torch.gather(w, 0, torch.zeros([1, 512], dtype=4, device=x.device))",
    "torch.take(w, torch.tensor([1, 2]).to(x.device))",
    "x.index_add(0, torch.arange(512, device=x.device), w)",
    "x.scatter(0, torch.zeros([512, 512], dtype=4, device=x.device), w)",
    "torch.cat([w, x])",
    "torch.stack([x, w])",
    "w.clone()",
    "w.to(7)",
    "w.to(5)",
    "w.to(3)",
    "w.t().contiguous()",
    "w.t().reshape(-1)",
    "w.repeat(2, 1)",
    "w.flip(0)",
    "w.roll(1, 0)",
    "torch.tril(w)",
    "torch.triu(w)",
    "w.trace()",
    "w[0, 0].item()",
    "float(w[0, 0])",
    "w.renorm(2, 0, 1)",
    "w.copy_(x)",
    "w.add_(1)",
    "w.zero_()",
    "w.fill_(2)",
    "x.copy_(w)",
    "torch.lerp(x, w, 0.5)",
    "torch.addcmul(x, x, w)",
    "torch.dropout(w, 0.5, True)",
    "torch.cdist(w, x)",
    "torch.fft_fft(w)",
    "torch._foreach_add([w, x], 1)[0]",
    "torch.constant_pad_nd(w, [1, 1])",
};

TEST(Placeholder, ReadOutsideACallIsAnErrorThatNamesTheWeightAndSaysWhatToCall) {
  torch::jit::Module module = make(1, chain(1));
  std::vector<std::string> methods;
  for (const char* reader : kReaders) {
    const std::string name = "reader" + std::to_string(methods.size());
    module.define("def " + name + "(self, x):\n  w = self.w0\n  return " + reader + "\n");
    methods.push_back(name);
  }
  EXPECT_GE(methods.size(), 100U);
  const Module offloaded = wrap(module, options_for(budget(8))); // leaves placeholders in `module`
  const at::Tensor x = rows(kWidth);
  for (const std::string& name : methods) {
    try {
      module.get_method(name)({x});
      ADD_FAILURE() << name << " read something";
    } catch (const std::exception& error) {
      EXPECT_NE(std::string(error.what()).find("weight w0 is there only in calls of its offload::Module"),
                std::string::npos)
          << name << ": " << error.what();
    }
  }
}

} // namespace
} // namespace offload::test
