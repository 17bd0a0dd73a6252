#include <ATen/NestedTensorImpl.h>
#include <ATen/ops/_addmm_activation.h>
#include <ATen/ops/_native_multi_head_attention.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/layer_norm.h>
#include <torch/library.h>

#include <tuple>
#include <vector>

#include <ops/lease.h>

namespace offload {

namespace {

/// Applies `f` to a tensor [batch, sequence, width]; where it is nested, to all its rows as one [rows, width].
template <class F>
at::Tensor by_rows(const at::Tensor& x, F f) {
  if (!x.is_nested()) {
    return f(x);
  }
  const auto* nested = at::native::get_nested_tensor_impl(x);
  const at::Tensor rows = f(nested->get_buffer().view({-1, x.size(2)}));
  TORCH_CHECK(rows.size(1) == x.size(2), "the products of an encoder layer change its width");
  return at::detail::make_tensor<at::native::NestedTensorImpl>(rows.view({-1}), nested->get_nested_sizes());
}

at::Tensor norm(const at::Tensor& x, std::int64_t width, const at::Tensor& weight, const at::Tensor& bias, double eps) {
  std::vector<at::Tensor> leased = {weight, bias};
  lease_all(leased, {});
  return by_rows(x, [&](const at::Tensor& rows) {
    return rows.is_meta() ? at::empty_like(rows) // where sizes are enough: PyTorch has no kernel for it
                          : at::layer_norm(rows, {width}, leased[0], leased[1], eps, /*cudnn_enable=*/true);
  });
}

/// [*, n] by the transpose of [m, n].
template <class F>
at::Tensor product(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, F addmm) {
  std::vector<at::Tensor> leased = {weight, bias};
  lease_all(leased, product_size(x, weight.size(0)));
  const bool flat = x.dim() == 2;
  const at::Tensor rows = addmm(leased[1], flat ? x : x.view({x.size(0) * x.size(1), x.size(2)}), leased[0].t());
  return flat ? rows : rows.view({x.size(0), x.size(1), -1});
}

/// What aten::_transformer_encoder_layer_fwd computes, by the same operators in the same order, so that the weights
/// need not all be there at once: attention and the first norm take theirs, then each of the two products, then the
/// second norm (before the products where norms come first). Same arguments, same bits.
at::Tensor transformer_encoder_layer(const at::Tensor& src, std::int64_t embed_dim, std::int64_t num_heads,
                                     const at::Tensor& qkv_weight, const at::Tensor& qkv_bias,
                                     const at::Tensor& proj_weight, const at::Tensor& proj_bias, bool use_gelu,
                                     bool norm_first, double eps, const at::Tensor& norm_weight_1,
                                     const at::Tensor& norm_bias_1, const at::Tensor& norm_weight_2,
                                     const at::Tensor& norm_bias_2, const at::Tensor& ffn_weight_1,
                                     const at::Tensor& ffn_bias_1, const at::Tensor& ffn_weight_2,
                                     const at::Tensor& ffn_bias_2, const std::optional<at::Tensor>& mask,
                                     std::optional<std::int64_t> mask_type) {
  if (src.numel() == 0) {
    return src.clone();
  }
  at::Tensor x = src;
  {
    std::vector<at::Tensor> leased = {qkv_weight,    qkv_bias,    proj_weight, proj_bias,
                                      norm_weight_1, norm_bias_1, src,         mask.value_or(at::Tensor())};
    lease_all(leased, product_size(src, qkv_weight.size(0) + proj_weight.size(0)));
    const at::Tensor input = leased[6];
    x = norm_first ? norm(input, embed_dim, leased[4], leased[5], eps) : input;
    x = x.is_meta() ? at::empty_like(x)
                    : std::get<0>(at::_native_multi_head_attention(
                          x, x, x, embed_dim, num_heads, leased[0], leased[1], leased[2], leased[3],
                          mask ? std::optional(leased[7]) : std::nullopt,
                          /*need_weights=*/false, /*average_attn_weights=*/true, mask_type));
    x.add_(input);
    x = norm_first ? x : norm(x, embed_dim, leased[4], leased[5], eps);
  }
  const at::Tensor residual = x;
  x = norm_first ? norm(x, embed_dim, norm_weight_2, norm_bias_2, eps) : x;
  x = by_rows(x, [&](const at::Tensor& rows) {
    const at::Tensor hidden = product(rows, ffn_weight_1, ffn_bias_1, [&](const auto& b, const auto& a, const auto& w) {
      return at::_addmm_activation(b, a, w, 1, 1, use_gelu);
    });
    return product(hidden, ffn_weight_2, ffn_bias_2,
                   [](const auto& b, const auto& a, const auto& w) { return at::addmm(b, a, w); });
  });
  x.add_(residual);
  return norm_first ? x : norm(x, embed_dim, norm_weight_2, norm_bias_2, eps);
}

} // namespace

} // namespace offload

TORCH_LIBRARY_FRAGMENT(offload, m) {
  m.def(
      torch::schema("_transformer_encoder_layer_fwd(Tensor src, int embed_dim, int num_heads, Tensor qkv_weight, "
                    "Tensor qkv_bias, Tensor proj_weight, Tensor proj_bias, bool use_gelu, bool norm_first, float eps, "
                    "Tensor norm_weight_1, Tensor norm_bias_1, Tensor norm_weight_2, Tensor norm_bias_2, "
                    "Tensor ffn_weight_1, Tensor ffn_bias_1, Tensor ffn_weight_2, Tensor ffn_bias_2, "
                    "Tensor? mask=None, int? mask_type=None) -> Tensor",
                    c10::AliasAnalysisKind::CONSERVATIVE), // as all of this library: see ops.cpp
      TORCH_FN(offload::transformer_encoder_layer));
}
