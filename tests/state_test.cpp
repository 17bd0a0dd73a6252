#include <ATen/ops/arange.h>
#include <ATen/ops/randn.h>
#include <gtest/gtest.h>

#include <offload/runtime/state.h>

namespace offload {
namespace {

TEST(State, TensorsThatShareMemoryShareTheirCopy) {
  const at::Tensor all = at::arange(4096).to(at::kFloat).view({8, 512});
  const at::Tensor other = at::randn({3});
  const std::vector<at::Tensor> tensors = {all[3], other, all.slice(0, 2, 6), all.select(1, 7), all[4].view(at::kInt)};
  std::size_t copied = 0;
  const std::vector<at::Tensor> copies = copy_together(tensors, [&](const std::vector<at::Tensor>& bytes) {
    std::vector<at::Tensor> own;
    for (const at::Tensor& some : bytes) {
      own.push_back(some.clone());
      copied += some.nbytes();
    }
    return own;
  });
  EXPECT_EQ(copied, 14368 + other.nbytes()) << "what they span, seven rows and eight more, once";
  ASSERT_EQ(copies.size(), tensors.size());
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    EXPECT_TRUE(copies[i].equal(tensors[i])) << i;
    EXPECT_EQ(copies[i].strides(), tensors[i].strides()) << i;
    EXPECT_FALSE(copies[i].is_alias_of(tensors[i])) << i;
  }
  copies[2].fill_(-1);
  EXPECT_EQ(copies[0].min().item<float>(), -1) << "row 3 is in both";
  EXPECT_EQ(copies[3][4].item<float>(), -1);
  EXPECT_EQ(copies[3][7].item<float>(), 7 * 512 + 7);
  EXPECT_EQ(all.min().item<float>(), 0);
}

} // namespace
} // namespace offload
