#pragma once

#include <ATen/core/ivalue.h>

#include <cstdint>
#include <string>
#include <vector>

#include <offload/graph/program.h>
#include <offload/plan/pass.h>

namespace offload {

/// An operator as a call executes it.
struct ShapedOp {
  std::string name;      ///< "aten::conv2d"
  std::size_t steps = 0; ///< that have leased weights by then: those of its own among them
  bool leases = false;   ///< by itself: what it computes is in its steps
  double flops = 0;      ///< multiplications and additions of products
  double bytes = 0;      ///< that it reads and writes
  bool computes = true;  ///< false for views, and what the host knows without the device
};

/// What a call does, as far as sizes tell.
struct ShapedCall {
  std::vector<LeasedStep> steps; ///< with what `ops` do until the next one; before the first one, in that
  std::vector<ShapedOp> ops;
  std::uint64_t peak_bytes = 0; ///< of tensors that it makes, at the same time
  c10::IValue output;           ///< with tensors on the device meta, which have sizes and no values
};

/// Executes a method of a program on sizes: no weight is read, nothing is computed, and no device is touched. `stack`
/// is what its graph takes: holders of the program, and arguments. Of those, integers are used as they are, since sizes
/// may depend on them; so is what is computed from integers alone, where that is small.
///
/// Throws InputError, with the place in the source, for an operator whose result depends on values that only a run
/// has, or whose sizes are not known here; and what the model raises.
ShapedCall trace_shapes(const Program& program, const std::string& method, std::vector<c10::IValue> stack,
                        c10::Device device);

} // namespace offload
