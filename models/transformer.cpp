#include "models/transformer.h"

#include <cmath>
#include <memory>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>

#include "models/parameters.h"

namespace offload::models {

using torch::jit::Module;

namespace {

constexpr char kEmbedding[] = R"(
def forward(self, tokens):
  return torch.embedding(self.weight, tokens)
)";
constexpr char kLinear[] = R"(
def forward(self, x):
  return torch.linear(x, self.weight)
)";
constexpr char kLinearWithBias[] = R"(
def forward(self, x):
  return torch.linear(x, self.weight, self.bias)
)";
constexpr char kRmsNorm[] = R"(
def forward(self, x):
  return torch.rms_norm(x, [x.size(-1)], self.weight, 1e-05)
)";
constexpr char kLayerNorm[] = R"(
def forward(self, x):
  return torch.layer_norm(x, [x.size(-1)], self.weight, self.bias, 1e-05)
)";

// `turn` is applied to queries and keys, [batch, heads, sequence, channels];
// cos and sin are [sequence, channels / 2].
constexpr char kAttention[] = R"(
def split(self, x):
  return x.view([x.size(0), x.size(1), self.heads, -1]).transpose(1, 2)

def turn(self, x, cos, sin):
  half = cos.size(1)
  a = x.narrow(-1, 0, half)
  b = x.narrow(-1, half, half)
  return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

def forward(self, x, cos, sin):
  query = self.turn(self.split(self.query.forward(x)), cos, sin)
  key = self.turn(self.split(self.key.forward(x)), cos, sin)
  value = self.split(self.value.forward(x))
  y = torch.scaled_dot_product_attention(query, key, value, None, 0.0, True)
  return self.output.forward(y.transpose(1, 2).flatten(2))
)";
constexpr char kSwiglu[] = R"(
def forward(self, x):
  return self.down.forward(torch.silu(self.gate.forward(x)) * self.up.forward(x))
)";
constexpr char kGelu[] = R"(
def forward(self, x):
  return self.down.forward(torch.gelu(self.up.forward(x)))
)";
constexpr char kBlock[] = R"(
def forward(self, x, cos, sin):
  x = x + self.attention.forward(self.attention_norm.forward(x), cos, sin)
  return x + self.mlp.forward(self.mlp_norm.forward(x))
)";

// Positions are made where the tokens are, so that no device is written into
// the model.
constexpr char kBegin[] = R"(
def forward(self, tokens):
  x = self.embedding.forward(tokens)
  channels = torch.arange(0, self.head_width, 2, device=tokens.device)
  frequencies = torch.pow(10000.0, channels.to(6) / -float(self.head_width))
  positions = torch.arange(tokens.size(1), device=tokens.device)
  angles = torch.outer(positions.to(6), frequencies)
  cos = torch.cos(angles).to(x.dtype)
  sin = torch.sin(angles).to(x.dtype)
  blocks = self.blocks
)";
constexpr char kEnd[] = R"(
  return self.head.forward(self.norm.forward(x))
)";
static_assert(static_cast<int>(at::kFloat) == 6, "the source above spells float32 as 6");

/// Makes the parts of one model. A part is made once, without memory; a copy of
/// it has the same type.
class Builder {
 public:
  explicit Builder(const TransformerOptions& options) : options_(options) {}

  Module model() {
    Module model = named("Transformer");
    const std::int64_t head_width = options_.width / options_.heads;
    model.register_attribute("head_width", c10::IntType::get(), head_width);
    const Module embedding = leaf("Embedding", {options_.vocab, options_.width}, std::nullopt, kEmbedding);
    model.register_module("embedding", embedding);
    const Module block = this->block();
    Module blocks = named("Blocks");
    std::ostringstream forward;
    forward << kBegin;
    for (std::int64_t i = 0; i < options_.layers; ++i) {
      blocks.register_module(std::to_string(i), block.deepcopy());
      forward << "  x = getattr(blocks, \"" << i << "\").forward(x, cos, sin)\n";
    }
    forward << kEnd;
    model.register_module("blocks", blocks);
    model.register_module("norm", norm());
    const Module head = linear(options_.vocab, options_.width, /*bias=*/false);
    if (options_.tied) {
      head._ivalue()->setAttr("weight", embedding.attr("weight"));
    }
    model.register_module("head", head);
    model.define(forward.str());
    return model;
  }

 private:
  Module named(const std::string& name) {
    Module module(name, unit_, /*shouldMangle=*/true);
    module.register_attribute("training", c10::BoolType::get(), false);
    return module;
  }

  Module leaf(const std::string& name, at::IntArrayRef weight, std::optional<std::int64_t> bias, const char* source) {
    Module module = named(name);
    module.register_parameter("weight", declare(weight, options_.dtype), false);
    if (bias) {
      module.register_parameter("bias", declare({*bias}, options_.dtype), false);
    }
    module.define(source);
    return module;
  }

  Module linear(std::int64_t out, std::int64_t in, bool bias) {
    return bias ? leaf("LinearWithBias", {out, in}, out, kLinearWithBias)
                : leaf("Linear", {out, in}, std::nullopt, kLinear);
  }

  Module norm() {
    return options_.norm == Norm::rms ? leaf("RMSNorm", {options_.width}, std::nullopt, kRmsNorm)
                                      : leaf("LayerNorm", {options_.width}, options_.width, kLayerNorm);
  }

  Module block() {
    const std::int64_t width = options_.width;
    const std::int64_t hidden = options_.hidden;
    Module attention = named("Attention");
    attention.register_attribute("heads", c10::IntType::get(), options_.heads);
    for (const char* name : {"query", "key", "value", "output"}) {
      attention.register_module(name, linear(width, width, options_.bias));
    }
    attention.define(kAttention);

    const bool gated = options_.mlp == Mlp::swiglu;
    Module mlp = named("MLP");
    if (gated) {
      mlp.register_module("gate", linear(hidden, width, options_.bias));
    }
    mlp.register_module("up", linear(hidden, width, options_.bias));
    mlp.register_module("down", linear(width, hidden, options_.bias));
    mlp.define(gated ? kSwiglu : kGelu);

    Module block = named("Block");
    block.register_module("attention_norm", norm());
    block.register_module("attention", attention);
    block.register_module("mlp_norm", norm());
    block.register_module("mlp", mlp);
    block.define(kBlock);
    return block;
  }

  const TransformerOptions& options_;
  std::shared_ptr<torch::jit::CompilationUnit> unit_ = std::make_shared<torch::jit::CompilationUnit>();
};

void require(bool condition, const std::string& what) {
  if (!condition) {
    throw std::invalid_argument(what);
  }
}

TransformerOptions completed(TransformerOptions options) {
  require(options.layers >= 1, "layers is " + std::to_string(options.layers) + ": at least 1 is wanted");
  require(options.vocab >= 1, "vocab is " + std::to_string(options.vocab) + ": at least 1 is wanted");
  require(options.heads >= 1, "heads is " + std::to_string(options.heads) + ": at least 1 is wanted");
  require(options.width >= 1 && options.width % (2 * options.heads) == 0,
          "width is " + std::to_string(options.width) + ": a multiple of twice the heads, " +
              std::to_string(2 * options.heads) + ", is wanted");
  require(options.hidden >= 0, "hidden is " + std::to_string(options.hidden) + ": at least 1 is wanted");
  require(at::isFloatingType(options.dtype),
          std::string("dtype is ") + at::toString(options.dtype) + ": a floating one is wanted");
  if (options.hidden == 0) {
    options.hidden = options.mlp == Mlp::gelu ? 4 * options.width : (options.width * 8 / 3 + 63) / 64 * 64;
  }
  return options;
}

} // namespace

Module transformer(const TransformerOptions& options) {
  const TransformerOptions complete = completed(options);
  Module model = Builder(complete).model();
  initialize(model, 0.02, complete.device, complete.seed);
  return model;
}

std::uint64_t transformer_bytes(const TransformerOptions& options) {
  const TransformerOptions o = completed(options);
  const std::int64_t norm = o.norm == Norm::rms ? o.width : 2 * o.width;
  const std::int64_t projections = o.mlp == Mlp::swiglu ? 3 : 2;
  const std::int64_t biases = o.bias ? 5 * o.width + (projections - 1) * o.hidden : 0;
  const std::int64_t block = 4 * o.width * o.width + projections * o.width * o.hidden + biases + 2 * norm;
  const std::int64_t elements = (o.tied ? 1 : 2) * o.vocab * o.width + o.layers * block + norm;
  return static_cast<std::uint64_t>(elements) * c10::elementSize(o.dtype);
}

TransformerOptions transformer_of_size(std::uint64_t bytes, TransformerOptions options) {
  // The width whose depth comes nearest to what is usual: a layer for each 64
  // channels.
  std::optional<TransformerOptions> best;
  double best_distance = 0;
  for (std::int64_t width = 64; width <= 32768; width += 64) {
    TransformerOptions candidate = options;
    candidate.width = width;
    candidate.heads = width % 128 == 0 && width >= 2048 ? width / 128 : width / 64;
    candidate.hidden = 0;
    candidate.layers = 1;
    const std::uint64_t one = transformer_bytes(candidate);
    candidate.layers = 2;
    const std::uint64_t layer = transformer_bytes(candidate) - one;
    if (one > bytes || one - layer > bytes / 2) {
      break;
    }
    candidate.layers = static_cast<std::int64_t>((bytes - one) / layer) + 1;
    const double distance = std::abs(std::log(static_cast<double>(candidate.layers) * 64 / static_cast<double>(width)));
    if (!best || distance < best_distance) {
      best = candidate;
      best_distance = distance;
    }
  }
  require(best.has_value(), "a transformer of " + std::to_string(bytes) + " bytes has no room for a vocabulary of " +
                                std::to_string(options.vocab) + " tokens");
  // What is left of the last layer goes into the MLPs.
  best->hidden = completed(*best).hidden;
  const std::uint64_t now = transformer_bytes(*best);
  best->hidden += 8;
  const std::uint64_t step = transformer_bytes(*best) - now;
  best->hidden += 8 * (static_cast<std::int64_t>((bytes - now) / step) - 1);
  return *best;
}

} // namespace offload::models
