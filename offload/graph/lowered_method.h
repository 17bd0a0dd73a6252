#pragma once

#include <ATen/core/function_schema.h>
#include <ATen/core/ivalue.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include <offload/options.h>
#include <offload/plan/simulate.h>

namespace offload {

/// How a node of the lowered graph takes its weights.
enum class Taken {
  product, ///< inside an operator of ours with the name of the one it replaces, which gives the same bits
  leased,  ///< from an `offload::acquire` before it
  rows,    ///< it looks up rows, and may read them where they lie in host memory
};

const char* to_string(Taken taken);

/// A loop around a step.
struct Loop {
  const void* identity; ///< the same for the steps within it
  std::int64_t trips;   ///< 1 where it is not known
};

/// What takes weights in the lowered graph, in the static order of execution: a node, or a part of one that takes them
/// part by part. Where the run picks the weights, there is a step for each alternative: see Note [Alternatives] in
/// weight_flow.h.
struct LoweredStep {
  Step weights;
  std::string op; ///< the operator that reads them, as in "aten::conv2d"
  double times;   ///< how often one call is expected to come here: trip counts where they are constant
  Taken taken;
  std::vector<Loop> loops = {}; ///< the outermost first
};

/// The steps of one call in the order in which it is expected to come to them: those of a loop take turns, as often as
/// the loop runs. None comes more than 1000 times.
std::vector<const LoweredStep*> expected_order(const std::vector<LoweredStep>& steps);

/// Whether a method differentiates: never, in a branch or a loop that may not be taken, or whenever it runs.
enum class Differentiates { never, perhaps, always };

/// A method that leases its weights.
struct LoweredMethod {
  struct Code; ///< what runs it: graph/method_code.h

  c10::FunctionSchema schema;
  std::shared_ptr<Code> code;
  std::vector<LoweredStep> steps; ///< the static order of its leases
  std::vector<Choice> choices;
  bool takes_constants; ///< after its arguments, the holder of constants

  /// What it runs under: for Gradients::callers, what its caller has set.
  Gradients gradients;
  Differentiates differentiates;
  bool holds_weights; ///< gradients may be on, and backward holds what was saved for it

  /// Throws InputError, saying what to do, for a method that differentiates though gradients are never on.
  void require_gradients() const;

  /// The same for one that did so in a call without gradients, as its error tells.
  void require_gradients(bool enabled, const std::string& error) const;

  bool draws_random_numbers() const;

  /// Runs it as Program::rebind() has placed it, on this thread, with gradients or without; forks run inline. `stack`
  /// holds the module and the arguments.
  c10::IValue run(std::vector<c10::IValue> stack, bool with_gradients) const;
};

} // namespace offload
