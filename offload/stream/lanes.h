#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <offload/plan/arena.h>
#include <offload/stream/segments.h>

namespace offload {

/// Device memory for the calls of one lane.
struct LaneCapacity {
  std::uint64_t arena = 0; ///< one piece for blocks of more than 1 MiB, workspaces among them
  std::uint64_t small = 0; ///< for the others, in pieces of 2 MiB

  std::uint64_t total() const { return arena + small; }
};

/// What one call did with memory.
struct MeasuredCall {
  AllocationTrace trace;   ///< of blocks that belong into an arena, without what stays
  std::uint64_t kept = 0;  ///< bytes of workspaces, which stay
  std::uint64_t small = 0; ///< of pieces of 2 MiB
  std::uint64_t state = 0; ///< what keep() holds afterwards
};

class CudaCalls;

/// What calls in flight have to themselves on the device: memory for activations and workspaces. They compute on the
/// caller's current stream, as operators do. The memory is taken when capacities are set, and not in calls: a call
/// finds it as it was when it was measured, empty but for workspaces, so that what was enough once is enough again.
class Lanes {
 public:
  virtual ~Lanes() = default;

  /// A call on a lane, on the thread that makes it: what it allocates is the lane's until it is destroyed. It begins
  /// after what the caller's current stream holds so far. One at a time for each lane.
  class Call {
   public:
    virtual ~Call() = default;

    /// Tensors with the values of `inner`, in memory that outlives calls and counts as state. Before leave().
    virtual std::vector<at::Tensor> keep(const std::vector<at::Tensor>& inner) = 0;

    /// Ordinary tensors with the values of `inner`, in the caller's memory, on the caller's stream. To be called at the
    /// end, with no outputs as well.
    virtual std::vector<at::Tensor> leave(const std::vector<at::Tensor>& inner) = 0;
  };
  virtual std::unique_ptr<Call> enter(int lane) = 0;

  /// True for memory of calls, which must not leave them. What keep() gave is none.
  virtual bool owns(const void* address) const = 0;

  /// True for what keep() gave.
  virtual bool keeps(const void* address) const = 0;

  /// Takes `each` for every lane and up to `state` for what is kept, and frees what they had. No call is under way.
  /// Throws Error when the device has not so much.
  virtual void set_capacity(const LaneCapacity& each, std::uint64_t state) = 0;

  /// The next call is on lane 0, and may take `bytes` in all; the other lanes have nothing. What fits `known` will fit.
  /// With `overflow`, what does not fit goes to page-locked host memory, and is measured all the same.
  virtual void begin_measuring(std::uint64_t bytes, const LaneCapacity& known, bool overflow) = 0;

  /// What that call took. Lanes have nothing then. To be called after exceptions as well.
  virtual MeasuredCall end_measuring() = 0;

  virtual std::uint64_t held() const = 0; ///< bytes on the device, now

  /// What the last call on this lane asked for and was refused; nothing when all was granted.
  virtual Refusal take_refused(int lane) = 0;

  /// Waits until all lanes have done what was enqueued.
  virtual void synchronize() = 0;

  /// The calls and their streams; null on the host.
  virtual std::shared_ptr<const CudaCalls> calls() const = 0;

  /// Where a call that is made now would compute: the caller's current stream; null on the host. A lane that computed
  /// there last begins at once, another moves.
  virtual const void* callers_stream() const = 0;
};

/// On the CPU a lane is nothing: operators run when they are called, and activations are ordinary memory.
std::unique_ptr<Lanes> make_lanes(c10::Device device, int count);
std::unique_ptr<Lanes> make_cuda_lanes(c10::Device device, int count);

} // namespace offload
