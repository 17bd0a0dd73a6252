#pragma once

#include <ATen/core/Generator.h>
#include <ATen/core/ivalue.h>

#include <exception>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include <offload/device/lanes.h>
#include <offload/graph/program.h>
#include <offload/priority.h>
#include <offload/runtime/arguments.h>
#include <offload/runtime/engine.h>
#include <offload/runtime/placed_module.h>
#include <offload/tensor/values.h>

namespace offload {

/// A call that was made. Where it overflowed there is no output, and what it wrote has been put back.
struct Made {
  std::optional<c10::IValue> output;
  CallMemory memory;
  bool ended = false;               ///< what it takes is known to its end
  ExecutedCall streamed;            ///< what it leased from the ring
  std::unique_ptr<LaneClock> clock; ///< null when it was not timed: else the laps between what it leased
  std::exception_ptr lost;          ///< why what it wrote could not be put back; null when it could
};

/// What leaves a call that ran with gradients. A tensor that was computed holds the graph that computed it, and with it
/// the weights that were saved for backward: their leases would never end. Tensors that the caller gave keep their
/// graph.
class GradientBoundary {
 public:
  explicit GradientBoundary(const std::vector<c10::IValue>& arguments) : cuts_(true) {
    for (const c10::IValue& argument : arguments) {
      if (!argument.isObject()) { // else it holds weights
        visit_tensors("", argument, [&](const std::string&, const at::Tensor& tensor) {
          given_.emplace(tensor.unsafeGetTensorImpl(), tensor);
        });
      }
    }
  }

  /// Of a call without gradients: there is nothing to cut.
  GradientBoundary() = default;

  bool cuts() const { return cuts_; }

  /// The tensor without its graph.
  at::Tensor detach(const at::Tensor& tensor) const {
    if (!cuts_ || !tensor.requires_grad() || given_.count(tensor.unsafeGetTensorImpl()) > 0) {
      return tensor;
    }
    const bool has_graph = tensor.grad_fn() || (tensor.is_view() && tensor._base().grad_fn());
    return has_graph ? tensor.detach() : tensor;
  }

 private:
  bool cuts_ = false;
  std::unordered_map<const void*, at::Tensor> given_; // kept, so that no other gets the address of one
};

/// True for a thread that computes a call with a lane of `transport`, or works for one.
bool is_within_call_on(const Transport& transport);

/// Runs one call, from its arguments to its output, on a lane that is the call's.
class Executor {
 public:
  /// `fixed`: memory that stays on the device. All that is named here outlives this.
  Executor(const Model& model, Transport& transport, Engine& engine, PlacedModule& placed, const DeviceMemory& fixed);

  struct How {
    std::shared_ptr<const Sequence> expected;         ///< what it is expected to lease, as it is in the ring
    Lanes::Overflow overflow = Lanes::Overflow::stop; ///< when it wants more memory than it may have
    bool is_known_to_fit = false;             ///< calls like it have been made: what it may write need not be put back
    std::vector<LeasedStep>* trace = nullptr; ///< for a call that is measured: gets its steps
    bool is_timed = false;
    Priority priority = PriorityGuard::current();
  };

  /// Throws what the call raised. What the model raised itself comes as the model raised it.
  Made run(int lane, const Request& request, const How& how);

 private:
  Made run_here(int lane, const Request& request, const How& how);
  c10::IValue detach_outputs(Lanes::Call& call, const c10::IValue& output, const std::vector<c10::IValue>& arguments,
                             const GradientBoundary& boundary);
  void retain_state(Lanes::Call& call);

  const Model& model_;
  Transport& transport_;
  Engine& engine_;
  PlacedModule& placed_;
  const DeviceMemory& fixed_;
  std::vector<at::Generator> generators_; // that calls draw from
};

} // namespace offload
