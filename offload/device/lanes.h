#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include <offload/core/lane_clock.h>
#include <offload/device/lane_gate.h>
#include <offload/device/lane_memory.h>

namespace offload {

class CudaCalls;

/// What calls in flight have to themselves on the device: memory for activations and workspaces. They compute on the
/// caller's current stream, as operators do. A lane takes memory from the device as its calls need it, within what the
/// gate lets it claim, and keeps it for the next ones until others need it.
class Lanes {
 public:
  using Overflow = LaneMemory::Overflow;

  virtual ~Lanes() = default;

  /// A call on a lane, on the thread that makes it: what it allocates is the lane's until it is destroyed. It begins
  /// after what the caller's current stream holds so far. One at a time for each lane. All that allocates while it
  /// lives may throw LaneOverflow.
  class Call {
   public:
    virtual ~Call() = default;

    /// Tensors with the values of `inner`, in memory that outlives calls and counts as state. Before detach().
    virtual std::vector<at::Tensor> retain(const std::vector<at::Tensor>& inner) = 0;

    /// Outputs detached from the call: tensors with the values of `inner` in the caller's memory, on the caller's
    /// stream. To be called at the end, with no outputs as well.
    virtual std::vector<at::Tensor> detach(const std::vector<at::Tensor>& inner) = 0;

    /// For laps of the call.
    virtual std::unique_ptr<LaneClock> make_clock() = 0;

    /// True when the call wanted more memory than it could have.
    virtual bool overflowed() const = 0;

    /// True when it is not to go on then: an operator may have hidden the exception.
    virtual bool must_stop() const = 0;

    /// Ends the call, and returns what it took.
    virtual CallMemory end() = 0;
  };

  /// With `first`, Call::end() returns what such calls take when they are repeated, even if this one is the first to
  /// want workspaces of libraries.
  virtual std::unique_ptr<Call> enter(int lane, Overflow overflow, bool first) = 0;

  /// Runs `work`, which makes a call on `lane`: on this thread while it is the only one that ever called, and else on a
  /// thread of the lane's own, with what this one has set for itself.
  virtual void run(int lane, const std::function<void()>& work) = 0;

  /// True for memory of calls, which must not leave them. What retain() gave is none.
  virtual bool owns(const void* address) const = 0;

  /// True for what retain() gave.
  virtual bool retains(const void* address) const = 0;

  /// Gives back what no call uses. No call is under way.
  virtual void release() = 0;

  /// Beside calls, gives back what lanes keep beyond the room of the gate. False when calls use more.
  virtual bool trim_to_room() = 0;

  virtual std::uint64_t held() const = 0;  ///< bytes on the device, now
  virtual std::uint64_t state() const = 0; ///< of them, those of retain()

  /// Waits until all lanes have done what was enqueued.
  virtual void synchronize() = 0;

  /// The calls and their streams; null on the host.
  virtual std::shared_ptr<const CudaCalls> calls() const = 0;

  /// Where a call that is made now would compute: the caller's current stream; null on the host.
  virtual const void* callers_stream() const = 0;

  /// For tests: from the n-th allocation of the next call on `lane`, as if nobody had more.
  virtual void refuse_from(int lane, std::uint64_t n) = 0;
};

/// On the CPU a lane is nothing: operators run when they are called, and activations are ordinary memory.
std::unique_ptr<Lanes> make_lanes(c10::Device device, int count, std::shared_ptr<LaneGate> gate);
std::unique_ptr<Lanes> make_cuda_lanes(c10::Device device, int count, std::shared_ptr<LaneGate> gate);

} // namespace offload
