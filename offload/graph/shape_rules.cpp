// Sizes of operators for which PyTorch has no kernel on meta in C++, and the work of products.

#include <offload/graph/shape_rules.h>

#include <ATen/ExpandUtils.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/result_type.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <numeric>
#include <sstream>
#include <unordered_map>
#include <utility>

namespace offload {

namespace {

using Values = std::vector<c10::IValue>;
using Sizes = std::vector<std::int64_t>;
using SizeRule = std::function<Values(const Values&)>;

at::Tensor sized(const Sizes& sizes, at::ScalarType dtype) {
  return at::empty(sizes, at::TensorOptions(dtype).device(at::kMeta));
}

at::Tensor sized_as(const at::Tensor& tensor, const Sizes& sizes) { return sized(sizes, tensor.scalar_type()); }

at::Tensor like(const at::Tensor& tensor) { return at::empty_like(tensor, tensor.options().device(at::kMeta)); }

Values same_as_first(const Values& in) { return {like(in[0].toTensor())}; }

/// All tensors together by broadcasting.
Sizes broadcast(const Values& in) {
  Sizes sizes;
  for (const c10::IValue& value : in) {
    if (value.isTensor() && value.toTensor().defined()) {
      sizes = at::infer_size(sizes, value.toTensor().sizes());
    }
  }
  return sizes;
}

Values truths(const Values& in) { return {sized(broadcast(in), at::kBool)}; }

Values broadcast_as_first(const Values& in) { return {sized_as(in[0].toTensor(), broadcast(in))}; }

Values number(const Values& in) { return {sized_as(in[0].toTensor(), {})}; }

Values where(const Values& in) {
  const auto dtype = [&] {
    const bool a = in[1].isTensor();
    const bool b = in[2].isTensor();
    return a && b ? at::result_type(in[1].toTensor(), in[2].toTensor())
           : a    ? at::result_type(in[1].toTensor(), in[2].toScalar())
           : b    ? at::result_type(in[1].toScalar(), in[2].toTensor())
                  : at::result_type(in[1].toScalar(), in[2].toScalar());
  };
  return {sized(broadcast(in), dtype())};
}

Values embedding(const Values& in) {
  Sizes sizes = in[1].toTensor().sizes().vec();
  sizes.push_back(in[0].toTensor().size(1));
  return {sized_as(in[0].toTensor(), sizes)};
}

/// Of `aten::index_select` and `aten::roll`'s kind: one dimension is another.
Values index_select(const Values& in) {
  const at::Tensor& tensor = in[0].toTensor();
  Sizes sizes = tensor.sizes().vec();
  if (!sizes.empty()) {
    sizes[static_cast<std::size_t>(at::maybe_wrap_dim(in[1].toInt(), tensor.dim()))] = in[2].toTensor().numel();
  }
  return {sized_as(tensor, sizes)};
}

/// As PyTorch's fused kernels lay it out: the heads of a position beside each other.
Values attention(const Values& in) {
  const at::Tensor& query = in[0].toTensor();
  Sizes sizes = query.sizes().vec();
  sizes.back() = in[2].toTensor().size(-1);
  if (sizes.size() != 4) {
    return {sized_as(query, sizes)};
  }
  std::swap(sizes[1], sizes[2]);
  return {sized_as(query, sizes).transpose(1, 2)};
}

/// _native_multi_head_attention, without weights of attention.
Values multi_head_attention(const Values& in) {
  const bool wants_weights = in[10].toBool();
  const at::Tensor& query = in[0].toTensor();
  const std::int64_t heads = in[4].toInt();
  const std::int64_t keys = in[1].toTensor().size(1);
  const Sizes weights =
      in[11].toBool() ? Sizes{query.size(0), query.size(1), keys} : Sizes{query.size(0), heads, query.size(1), keys};
  return {like(query), wants_weights ? sized_as(query, weights) : at::Tensor()};
}

// Windows over the last dimensions: convolutions and pools.

/// The i-th of a list with one element for each dimension, or for all.
std::int64_t of_dimension(const c10::IValue& value, std::size_t i, std::int64_t otherwise) {
  if (value.isInt()) {
    return value.toInt();
  }
  if (!value.isIntList() || value.toIntVector().empty()) {
    return otherwise;
  }
  const Sizes values = value.toIntVector();
  return values.size() == 1 ? values[0] : values[i];
}

struct Window {
  c10::IValue stride;
  c10::IValue padding; ///< numbers, or "same" or "valid"
  c10::IValue dilation;
  c10::IValue output_padding = Sizes{};
  bool transposed = false;
  std::int64_t groups = 1;
};

/// input [batch, in, *] or [in, *], weight [out, in / groups, *], or of a transposed one [in, out / groups, *].
Values convolve(const Values& in, const Window& window) {
  const at::Tensor& input = in[0].toTensor();
  const at::Tensor& weight = in[1].toTensor();
  const auto dimensions = static_cast<std::size_t>(weight.dim() - 2);
  Sizes sizes = input.sizes().vec();
  const std::size_t first = sizes.size() - dimensions;
  sizes[first - 1] = window.transposed ? weight.size(1) * window.groups : weight.size(0);
  for (std::size_t i = 0; i < dimensions; ++i) {
    std::int64_t& size = sizes[first + i];
    const std::int64_t dilation = of_dimension(window.dilation, i, 1);
    const std::int64_t reach = dilation * (weight.size(static_cast<std::int64_t>(i) + 2) - 1) + 1;
    const std::int64_t stride = of_dimension(window.stride, i, 1);
    if (window.padding.isString()) {
      size = window.padding.toStringRef() == "same" ? size : (size - reach) / stride + 1;
      continue;
    }
    const std::int64_t padding = of_dimension(window.padding, i, 0);
    size = window.transposed ? (size - 1) * stride - 2 * padding + reach + of_dimension(window.output_padding, i, 0)
                             : (size + 2 * padding - reach) / stride + 1;
  }
  return {sized_as(input, sizes)};
}

/// conv1d, conv2d, conv3d: stride, padding, dilation, groups.
Values convolution(const Values& in) { return convolve(in, {in[3], in[4], in[5]}); }

/// Stride, padding, output_padding, groups, dilation.
Values transposed_convolution(const Values& in) {
  return convolve(in, {in[3], in[4], in[7], in[5], /*transposed=*/true, in[6].toInt()});
}

/// Stride, padding, dilation, transposed, output_padding, groups.
Values any_convolution(const Values& in) {
  return convolve(in, {in[3], in[4], in[5], in[7], in[6].toBool(), in[8].toInt()});
}

Values adaptive_pool(const Values& in) {
  const at::Tensor& input = in[0].toTensor();
  Sizes sizes = input.sizes().vec();
  const Sizes wanted = in[1].toIntVector();
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    sizes[sizes.size() - wanted.size() + i] = wanted[i];
  }
  return {sized_as(input, sizes)};
}

Values grid_sample(const Values& in) {
  Sizes sizes = in[0].toTensor().sizes().vec();
  for (std::size_t i = 2; i < sizes.size(); ++i) {
    sizes[i] = in[1].toTensor().size(static_cast<std::int64_t>(i) - 1);
  }
  return {sized_as(in[0].toTensor(), sizes)};
}

// Recurrent layers: (input, state, weights, has_biases, layers, dropout, train, bidirectional, batch_first), and packed
// ones (data, batch_sizes, state, weights, has_biases, ...).

Values recurrent(const Values& in, bool packed) {
  const std::size_t at = packed ? 2 : 1;
  const bool is_lstm = in[at].isTensorList();
  const at::Tensor state = is_lstm ? in[at].toTensorVector()[0] : in[at].toTensor();
  const at::Tensor& input = in[0].toTensor();
  Sizes sizes = input.sizes().vec();
  const std::int64_t directions = in[at + 6].toBool() ? 2 : 1;
  sizes.back() = directions * state.size(-1);
  Values out = {sized_as(input, sizes), like(state)};
  if (is_lstm) { // its cells may be wider than what it puts out
    const at::Tensor cells = in[at].toTensorVector()[1];
    out.emplace_back(like(cells));
  }
  return out;
}

/// pack_padded_sequence: the rows of those sequences that are long enough, position after position.
Values pack(const Values& in) {
  const at::Tensor& input = in[0].toTensor();
  const at::Tensor& lengths = in[1].toTensor();
  TORCH_CHECK(lengths.is_cpu(), "lengths");
  const auto* length = lengths.const_data_ptr<std::int64_t>();
  const std::int64_t count = lengths.numel();
  const std::int64_t longest = count == 0 ? 0 : *std::max_element(length, length + count);
  at::Tensor batch_sizes = at::empty({longest}, at::kLong);
  for (std::int64_t i = 0; i < longest; ++i) {
    batch_sizes.mutable_data_ptr<std::int64_t>()[i] =
        std::count_if(length, length + count, [&](auto n) { return n > i; });
  }
  Sizes sizes = input.sizes().slice(1).vec();
  sizes[0] = std::accumulate(length, length + count, std::int64_t{0});
  return {sized_as(input, sizes), batch_sizes};
}

/// pad_packed_sequence: data, batch_sizes, batch_first, padding, total_length.
Values unpack(const Values& in) {
  const at::Tensor& data = in[0].toTensor();
  const at::Tensor& batch_sizes = in[1].toTensor();
  TORCH_CHECK(batch_sizes.is_cpu() && batch_sizes.numel() > 0, "batch_sizes");
  const auto* rows = batch_sizes.const_data_ptr<std::int64_t>();
  const std::int64_t longest = batch_sizes.numel();
  at::Tensor lengths = at::empty({rows[0]}, at::kLong);
  for (std::int64_t i = 0; i < rows[0]; ++i) {
    lengths.mutable_data_ptr<std::int64_t>()[i] = std::count_if(rows, rows + longest, [&](auto n) { return n > i; });
  }
  Sizes sizes = data.sizes().vec();
  const std::int64_t steps = std::max(longest, in[4].toInt());
  sizes[0] = in[2].toBool() ? steps : rows[0];
  sizes.insert(sizes.begin(), in[2].toBool() ? rows[0] : steps);
  return {sized_as(data, sizes), lengths};
}

/// weight, indices, offsets, ..., include_last_offset at 7: one row for each bag.
Values embedding_bag(const Values& in) {
  const at::Tensor& weight = in[0].toTensor();
  const at::Tensor& indices = in[1].toTensor();
  const at::Tensor& offsets = in[2].toTensor();
  const std::int64_t bags = offsets.numel() - (in[7].toBool() ? 1 : 0);
  return {sized_as(weight, {bags, weight.size(1)}), like(indices), sized_as(offsets, {bags}),
          sized_as(offsets, {bags})};
}

/// Rules for several operators; `names` are separated by white space.
void add(std::unordered_map<std::string, SizeRule>& rules, const char* names, const SizeRule& rule) {
  std::istringstream words(names);
  for (std::string name; words >> name;) {
    rules["aten::" + name] = rule;
  }
}

std::unordered_map<std::string, SizeRule> make_rules() {
  std::unordered_map<std::string, SizeRule> rules;
  add(rules,
      "relu relu6 hardswish hardsigmoid hardtanh selu celu mish prelu rrelu dropout feature_dropout alpha_dropout "
      "native_dropout layer_norm batch_norm instance_norm group_norm rms_norm roll flip fliplr flipud rot90 "
      "nan_to_num abs log_sigmoid logit _weight_norm cumprod cummax cummin renorm fake_quantize_per_tensor_affine",
      same_as_first);
  add(rules, "logical_not logical_and logical_or logical_xor isnan isinf isfinite isclose isneginf isposinf", truths);
  add(rules, "masked_fill masked_scatter lerp", broadcast_as_first);
  add(rules, "min max median trace dot vdot", number);
  add(rules, "embedding_bag", embedding_bag);
  add(rules, "_pack_padded_sequence", pack);
  add(rules, "_pad_packed_sequence", unpack);
  add(rules, "where", where);
  add(rules, "embedding", embedding);
  add(rules, "index_select", index_select);
  add(rules, "scaled_dot_product_attention", attention);
  add(rules, "_native_multi_head_attention", multi_head_attention);
  add(rules, "conv1d conv2d conv3d", convolution);
  add(rules, "conv_transpose1d conv_transpose2d conv_transpose3d", transposed_convolution);
  add(rules, "convolution _convolution", any_convolution);
  add(rules, "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d", adaptive_pool);
  add(rules, "grid_sampler grid_sampler_2d grid_sampler_3d", grid_sample);
  return rules;
}

} // namespace

std::optional<Values> output_of_rule(const c10::FunctionSchema& op, const Values& arguments) {
  static const std::unordered_map<std::string, SizeRule>& rules =
      *new std::unordered_map<std::string, SizeRule>(make_rules());
  const std::string& name = op.name();
  if (name == "aten::lstm" || name == "aten::gru" || name == "aten::rnn_tanh" || name == "aten::rnn_relu") {
    return recurrent(arguments, op.overload_name() == "data");
  }
  const bool reduces_all = name == "aten::min" || name == "aten::max" || name == "aten::median";
  if (reduces_all && op.arguments().size() != 1) {
    return std::nullopt;
  }
  const auto rule = rules.find(name);
  return rule == rules.end() ? std::nullopt : std::optional(rule->second(arguments));
}

double flops_of(const std::string& op, const Values& in, const Values& out) {
  const auto numel = [](const c10::IValue& value) { return static_cast<double>(value.toTensor().numel()); };
  const auto is = [&](std::initializer_list<const char*> names) {
    return std::any_of(names.begin(), names.end(), [&](const char* name) { return op == name; });
  };
  if (out.empty() || !out[0].isTensor()) {
    return 0;
  }
  if (is({"aten::linear", "offload::linear", "aten::matmul", "offload::matmul", "aten::mm", "offload::mm", "aten::bmm",
          "offload::bmm"})) {
    const at::Tensor& a = in[0].toTensor();
    return a.dim() == 0 ? 0 : 2 * numel(out[0]) * static_cast<double>(a.size(-1));
  }
  if (is({"aten::addmm", "offload::addmm", "aten::baddbmm"})) {
    return 2 * numel(out[0]) * static_cast<double>(in[1].toTensor().size(-1));
  }
  if (op.find("conv") != std::string::npos && in.size() > 1 && in[1].isTensor() && in[1].toTensor().dim() > 2) {
    const at::Tensor& weight = in[1].toTensor();
    const bool transposed = op.find("transpose") != std::string::npos ||
                            (is({"aten::convolution", "aten::_convolution"}) && in[6].toBool());
    const double per_element = static_cast<double>(weight.numel()) / static_cast<double>(weight.size(0));
    return 2 * per_element * (transposed ? numel(in[0]) : numel(out[0]));
  }
  if (op == "aten::scaled_dot_product_attention") {
    return 2 * static_cast<double>(in[1].toTensor().size(-2)) * (numel(in[0]) + numel(out[0]));
  }
  if (is({"aten::lstm", "aten::gru", "aten::rnn_tanh", "aten::rnn_relu"})) {
    const std::size_t weights = in[1].isTensor() && in[2].isTensorList() && in[0].toTensor().dim() == 2 ? 3 : 2;
    double elements = 0;
    if (in.size() > weights && in[weights].isTensorList()) {
      for (const at::Tensor& weight : in[weights].toTensorVector()) {
        elements += weight.dim() == 2 ? static_cast<double>(weight.numel()) : 0;
      }
    }
    const at::Tensor& input = in[0].toTensor(); // [*, width]
    const std::int64_t rows = input.numel() / std::max<std::int64_t>(1, input.dim() == 0 ? 1 : input.size(-1));
    return 2 * elements * static_cast<double>(rows);
  }
  return 0;
}

} // namespace offload
