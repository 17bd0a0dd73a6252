#pragma once

#include <cuda_runtime_api.h>

#include <memory>
#include <mutex>
#include <type_traits>
#include <utility>
#include <vector>

namespace offload {

/// Whether CUDA did what it gave `code` for. What it says otherwise is cleared, so that it is not found again by
/// others.
bool worked(cudaError_t code);

/// Throws Error with what CUDA says about `code` in `doing` unless it worked().
void check_cuda(cudaError_t code, const char* doing);

/// To be called before a device is used. Throws Error in a child of a process that has called it: there the driver
/// refuses everything, and locks of PyTorch may be held by threads that are gone.
void require_cuda();

/// Whether the device has come to `event`. CUDA takes "not yet" for an error, which would replace one of the caller's
/// that is pending on this thread: then it is not asked, and the answer is no. What is wrong is reported by the next
/// command.
bool has_reached(cudaEvent_t event);

/// A stream for copies that nobody else uses. Its priority keeps it out of the few queues to the device that the
/// streams of calls share: there it would stand behind what waits for its own copies.
class OwnStream {
 public:
  OwnStream();
  ~OwnStream() { static_cast<void>(cudaStreamDestroy(stream_)); }
  OwnStream(const OwnStream&) = delete;
  OwnStream& operator=(const OwnStream&) = delete;
  cudaStream_t get() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

/// An event of a pool, which it goes back to with the last of these.
using EventPtr = std::shared_ptr<std::remove_pointer_t<cudaEvent_t>>;

/// Events that are not in use. A wait that was enqueued keeps to what the event stood for then, so that an event may be
/// recorded anew as soon as nobody has it any more.
class EventPool : public std::enable_shared_from_this<EventPool> {
 public:
  explicit EventPool(unsigned flags) : flags_(flags) {}
  ~EventPool();

  EventPtr take();

 private:
  const unsigned flags_;
  std::mutex mutex_;
  std::vector<cudaEvent_t> free_;
};

/// What is enqueued on one stream from some time on, until it ends. The stream belongs to somebody else, who goes on
/// with it then, or destroys it. Any thread may call; the stream's device is current.
class CudaCall {
 public:
  CudaCall(cudaStream_t stream, std::shared_ptr<EventPool> events)
      : stream_(stream), events_(std::move(events)), end_(events_->take()) {}

  cudaStream_t stream() const { return stream_; }

  /// An event after what the call has enqueued so far: its end, once it has ended.
  EventPtr record() const;

  void end() noexcept;

 private:
  const cudaStream_t stream_;
  const std::shared_ptr<EventPool> events_;
  const EventPtr end_;
  mutable std::mutex mutex_;
  bool ended_ = false;
};
using CudaCallPtr = std::shared_ptr<CudaCall>;

/// The last call of each lane. Those of one lane come one after the other, also on the device.
class CudaCalls {
 public:
  explicit CudaCalls(int lanes) : lanes_(lanes), last_(lanes) {}

  /// What is enqueued on `stream` from now on comes after the last call of the lane, and belongs to this one.
  CudaCallPtr begin(int lane, cudaStream_t stream);

  /// Null before the first.
  CudaCallPtr last(int lane) const;

  /// Wait until the device has done that of a lane, or all of them.
  void synchronize(int lane) const;
  void synchronize() const;

  const std::shared_ptr<EventPool>& events() const { return events_; }
  const std::shared_ptr<EventPool>& timed_events() const { return timed_events_; }

 private:
  const int lanes_;
  const std::shared_ptr<EventPool> events_ = std::make_shared<EventPool>(cudaEventDisableTiming);
  const std::shared_ptr<EventPool> timed_events_ = std::make_shared<EventPool>(cudaEventDefault);
  mutable std::mutex mutex_;
  std::vector<CudaCallPtr> last_;
};

} // namespace offload
