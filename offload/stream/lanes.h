#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace offload {

/// What calls in flight have to themselves on the device: a compute stream and a pool for activations and workspaces
/// each. All pools together take at most `reserve` bytes, counted as the driver gives them out.
class Lanes {
 public:
  virtual ~Lanes() = default;

  /// A call on a lane, on the thread that makes it: allocations and operators go to the lane until it is destroyed. It
  /// begins after what the caller's current stream holds so far. One at a time for each lane.
  class Call {
   public:
    virtual ~Call() = default;

    /// Ordinary tensors with the values of `inner`, in the caller's memory, on the caller's stream, which from then on
    /// comes after all that the lane did. To be called at the end, with no outputs as well.
    virtual std::vector<at::Tensor> leave(const std::vector<at::Tensor>& inner) = 0;
  };
  virtual std::unique_ptr<Call> enter(int lane) = 0;

  /// True for memory that a call allocated and that must not leave it.
  virtual bool owns(const void* address) const = 0;

  virtual void set_reserve(std::uint64_t bytes) = 0;
  /// What does not fit the reserve goes to page-locked host memory instead of being refused: slow, right, and it shows
  /// how large the reserve should have been. reset() afterwards, so that no later call meets that memory again.
  virtual void allow_overflow(bool allow) = 0;
  /// Gives back what the pools hold for later calls, and forgets their demand. No call is under way.
  virtual void reset() = 0;
  virtual std::uint64_t reserved() const = 0;   ///< bytes that the pools hold now on the device
  virtual std::uint64_t high_water() const = 0; ///< the most they held, and
  virtual std::uint64_t demand() const = 0;     ///< the most they held with what overflowed, since reset()
  /// Bytes that were asked for and refused since this was last asked; 0 when none were.
  virtual std::uint64_t take_refused() = 0;

  /// Waits until all lanes have done what was enqueued.
  virtual void synchronize() = 0;

  /// The compute streams, as cudaStream_t; empty on the host.
  virtual std::vector<void*> streams() const = 0;
};

/// On the CPU a lane is nothing: operators run when they are called, and activations are ordinary memory.
std::unique_ptr<Lanes> make_lanes(c10::Device device, int count);

} // namespace offload
