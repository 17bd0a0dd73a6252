// Operators of a user of PyTorch, who has never heard of this project: built as a library of its own, with torch alone.

#include <ATen/ops/add.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/sum.h>
#include <torch/library.h>

namespace {

/// Reads its input by address.
at::Tensor row_sums(const at::Tensor& weight) {
  if (!weight.is_cpu()) {
    return at::sum(weight, {1});
  }
  TORCH_CHECK(weight.dim() == 2 && weight.scalar_type() == at::kFloat, "row_sums: float32 [rows, columns]");
  at::Tensor sums = at::empty({weight.size(0)}, weight.options());
  const float* values = weight.const_data_ptr<float>();
  for (std::int64_t row = 0; row < weight.size(0); ++row) {
    float sum = 0;
    for (std::int64_t column = 0; column < weight.size(1); ++column) {
      sum += values[row * weight.stride(0) + column * weight.stride(1)];
    }
    sums.mutable_data_ptr<float>()[row] = sum;
  }
  return sums;
}

/// Returns what it was given, and does not say so.
at::Tensor same(const at::Tensor& weight) { return weight; }

std::vector<at::Tensor> halves(const std::vector<at::Tensor>& weights) {
  std::vector<at::Tensor> halves;
  for (const at::Tensor& weight : weights) {
    halves.push_back(at::mul(weight, 0.5));
  }
  return halves;
}

at::Tensor decay(at::Tensor& weight, double by) { return weight.mul_(by); }

at::Tensor maybe_add(const at::Tensor& x, const std::optional<at::Tensor>& weight) {
  return weight ? at::add(x, *weight) : x;
}

} // namespace

TORCH_LIBRARY(custom, m) {
  m.def("row_sums(Tensor weight) -> Tensor", TORCH_FN(row_sums));
  m.def("same(Tensor weight) -> Tensor", TORCH_FN(same));
  m.def("halves(Tensor[] weights) -> Tensor[]", TORCH_FN(halves));
  m.def("decay(Tensor(a!) weight, float by) -> Tensor(a!)", TORCH_FN(decay));
  m.def("maybe_add(Tensor x, Tensor? weight) -> Tensor", TORCH_FN(maybe_add));
}
