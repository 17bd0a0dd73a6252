#pragma once

// A decoder-only transformer of any size, as language models are built: what it
// takes is known by its options alone.

#include <cstdint>

#include <c10/core/Device.h>
#include <c10/core/ScalarType.h>
#include <torch/csrc/jit/api/module.h>

namespace offload::models {

enum class Norm { rms, layer };
enum class Mlp { swiglu, gelu };

struct TransformerOptions {
  std::int64_t layers = 12;
  std::int64_t width = 768; // a multiple of 2 * heads: rotary positions turn
                            // pairs of channels of a head
  std::int64_t heads = 12;
  std::int64_t hidden = 0; // channels inside the MLP; 0: about 8/3 of the width
                           // for SwiGLU, 4 times for GELU
  std::int64_t vocab = 32000;
  Norm norm = Norm::rms;
  Mlp mlp = Mlp::swiglu;
  bool bias = false; // of the linears inside the blocks
  bool tied = false; // `embedding.weight` and `head.weight` are one tensor
  at::ScalarType dtype = at::kFloat;
  c10::Device device = at::kCPU; // where the weights are made, and stay
  std::uint64_t seed = 0;
};

/// Tokens, int64 [batch, sequence] below `vocab`, to logits [batch, sequence,
/// vocab] of `dtype`. Runs on whatever device weights and tokens are on.
/// Pre-norm blocks `blocks.0` and on, of one type, each with `attention_norm`,
/// `attention.{query,key,value,output}`, `mlp_norm` and `mlp.{gate,up,down}`;
/// before them `embedding`, after them `norm` and `head`. Linear weights are
/// [out, in]. Throws std::invalid_argument that names the option that is out of
/// range, c10::Error where memory does not suffice.
torch::jit::Module transformer(const TransformerOptions& options);

/// Bytes of the parameters that `transformer(options)` would have.
std::uint64_t transformer_bytes(const TransformerOptions& options);

/// `options` with layers, width, heads and hidden such that the parameters take
/// `bytes` or a little less: within 1% from 1 MiB on. What else `options` says
/// is kept, `vocab` too. Throws std::invalid_argument where the embedding alone
/// would take more than half.
TransformerOptions transformer_of_size(std::uint64_t bytes, TransformerOptions options);

} // namespace offload::models
