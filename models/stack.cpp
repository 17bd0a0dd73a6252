#include "models/stack.h"

#include <cmath>
#include <memory>
#include <sstream>
#include <string>

#include "models/parameters.h"

namespace offload::models {

using torch::jit::Module;

namespace {

Module linear(const StackOptions& options, const std::shared_ptr<torch::jit::CompilationUnit>& unit) {
  Module layer("Linear", unit);
  layer.register_attribute("training", c10::BoolType::get(), false);
  layer.register_parameter("weight", declare({options.features, options.features}, options.dtype), false);
  if (options.bias) {
    layer.register_parameter("bias", declare({options.features}, options.dtype), false);
  }
  layer.define(options.bias ? "def forward(self, x):\n  return torch.linear(x, self.weight, "
                              "self.bias)\n"
                            : "def forward(self, x):\n  return torch.linear(x, self.weight)\n");
  return layer;
}

} // namespace

Module residual_stack(const StackOptions& options) {
  const auto unit = std::make_shared<torch::jit::CompilationUnit>();
  const Module layer = linear(options, unit);
  Module layers("Layers", unit);
  layers.register_attribute("training", c10::BoolType::get(), false);
  // TorchScript has no loop over modules: one line of source a layer.
  std::ostringstream forward;
  forward << "def forward(self, x):\n  layers = self.layers\n";
  for (std::int64_t i = 0; i < options.layers; ++i) {
    layers.register_module(std::to_string(i), layer.deepcopy());
    forward << "  x = x + getattr(layers, \"" << i << "\").forward(x)\n";
  }
  forward << "  return x\n";

  Module stack("ResidualStack", unit);
  stack.register_attribute("training", c10::BoolType::get(), false);
  stack.register_module("layers", layers);
  stack.define(forward.str());
  initialize(stack, 0.02 / std::sqrt(static_cast<double>(options.features)), options.device, options.seed);
  return stack;
}

} // namespace offload::models
