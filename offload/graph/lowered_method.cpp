#include <offload/graph/lowered_method.h>

#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <functional>
#include <string_view>
#include <utility>

#include <offload/error.h>
#include <offload/graph/attributes.h>
#include <offload/graph/method_code.h>

namespace offload {

const char* to_string(Taken taken) {
  switch (taken) {
    case Taken::product:
      return "product";
    case Taken::leased:
      return "leased";
    case Taken::rows:
      return "rows";
  }
  return "unknown";
}

namespace {

[[noreturn]] void refuse_without_gradients(const LoweredMethod& method, const std::string& more) {
  throw InputError("method '" + method.schema.name() + "' calls torch.autograd.grad, and " +
                   (method.gradients == Gradients::callers
                        ? "its caller has turned gradients off: turn them on"
                        : "calls run without gradients: call torch.set_grad_enabled(True) in the model, or give "
                          "Options::gradients = Gradients::callers and call it with gradients on") +
                   more);
}

} // namespace

std::vector<const LoweredStep*> expected_order(const std::vector<LoweredStep>& steps) {
  std::vector<const LoweredStep*> order;
  std::vector<int> left; // by step, how often it still comes
  for (const LoweredStep& step : steps) {
    left.push_back(static_cast<int>(std::min(step.times, 1000.0)));
  }
  // One round through the steps from `begin` to `end`, all of which are `depth` loops deep or deeper.
  const std::function<void(std::size_t, std::size_t, std::size_t)> run = [&](std::size_t begin, std::size_t end,
                                                                             std::size_t depth) {
    for (std::size_t i = begin; i < end;) {
      if (steps[i].loops.size() == depth) {
        if (left[i] > 0) {
          --left[i];
          order.push_back(&steps[i]);
        }
        ++i;
        continue;
      }
      const Loop& loop = steps[i].loops[depth];
      const std::size_t first = i;
      while (i < end && steps[i].loops.size() > depth && steps[i].loops[depth].identity == loop.identity) {
        ++i;
      }
      std::size_t before = 0;
      std::int64_t round = 0;
      do {
        before = order.size();
        run(first, i, depth + 1);
      } while (++round < loop.trips && order.size() > before);
    }
  };
  run(0, steps.size(), 0);
  return order;
}

void LoweredMethod::require_gradients() const {
  if (differentiates == Differentiates::always && !holds_weights) {
    refuse_without_gradients(*this, "");
  }
}

void LoweredMethod::require_gradients(bool enabled, const std::string& error) const {
  constexpr std::string_view kOfAutograd = "does not require grad and does not have a grad_fn";
  if (!enabled && differentiates != Differentiates::never && error.find(kOfAutograd) != std::string::npos) {
    refuse_without_gradients(*this, std::string(" (element 0 of tensors ") + kOfAutograd.data() + ")");
  }
}

bool LoweredMethod::draws_random_numbers() const {
  return any_node(code->lowered->block(), [](const torch::jit::Node* node) { return node->isNondeterministic(); });
}

c10::IValue LoweredMethod::run(std::vector<c10::IValue> stack, bool with_gradients) const {
  return run_code(code->placed.value(), std::move(stack), with_gradients);
}

c10::IValue run_code(const torch::jit::Code& code, std::vector<c10::IValue> stack, bool gradients) {
  const at::AutoGradMode mode(gradients);
  torch::jit::InterpreterState state(code, [](const std::function<void()>& task) { task(); });
  state.run(stack);
  return stack.empty() ? c10::IValue() : std::move(stack.front());
}

} // namespace offload
