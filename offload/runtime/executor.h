#pragma once

#include <ATen/core/Generator.h>
#include <ATen/core/ivalue.h>

#include <exception>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <offload/device/lanes.h>
#include <offload/graph/program.h>
#include <offload/runtime/engine.h>
#include <offload/runtime/gradient_boundary.h>
#include <offload/runtime/placed_module.h>
#include <offload/runtime/state.h>

namespace offload {

/// A call that somebody wants.
struct Request {
  const std::string& method;
  std::vector<c10::IValue> stack; ///< as make_stack() makes it
  std::size_t shape;              ///< as shape_of_call() gives it
};

/// A call that was made. Where it overflowed there is no output, and what it wrote has been put back.
struct Made {
  std::optional<c10::IValue> output;
  CallMemory memory;
  bool ended = false;      ///< what it takes is known to its end
  Sequence executed;       ///< the steps that it leased
  std::exception_ptr lost; ///< why what it wrote could not be put back; null when it could
};

/// Runs one call, from its arguments to its output, on a lane that is the call's.
class Executor {
 public:
  /// `fixed`: memory that stays on the device. All that is named here outlives this.
  Executor(Program& program, Engine& engine, PlacedModule& placed, const DeviceMemory& fixed, c10::Device device);

  struct How {
    std::shared_ptr<const Sequence> expected;         ///< what it is expected to lease
    Lanes::Overflow overflow = Lanes::Overflow::stop; ///< when it wants more memory than it may have
    bool is_known_to_fit = false;             ///< calls like it have been made: what it may write need not be put back
    std::vector<LeasedStep>* trace = nullptr; ///< for a call that is measured: gets its steps
  };

  /// Throws what the call raised. What the model raised itself comes as the model raised it.
  Made run(int lane, const Request& request, const How& how);

  /// True for a thread that computes a call of this, or works for one.
  bool is_within_call() const;

 private:
  Made run_here(int lane, const Request& request, const How& how);
  c10::IValue detach_outputs(Lanes::Call& call, const c10::IValue& output, const std::vector<c10::IValue>& inputs,
                             const GradientBoundary& boundary);
  std::optional<StateSnapshot> state_before() const;
  void retain_state(Lanes::Call& call);

  Program& program_;
  Engine& engine_;
  PlacedModule& placed_;
  const DeviceMemory& fixed_;
  const c10::Device device_;
  std::vector<at::Generator> generators_; // that calls draw from
};

} // namespace offload
