#pragma once

#include <ATen/core/ivalue.h>
#include <torch/csrc/jit/api/module.h>

#include <cstdint>
#include <iosfwd>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include <offload/advice.h>
#include <offload/error.h>
#include <offload/export.h>
#include <offload/options.h>
#include <offload/placement.h>
#include <offload/process.h>
#include <offload/timeline.h>

namespace offload {

/// What has happened since load, all callers together.
struct Stats {
  std::uint64_t calls = 0;           ///< that returned; example calls, too
  std::uint64_t calls_repeated = 0;  ///< times that a call was stopped for want of memory, to be made again or refused
  std::uint64_t bytes_streamed = 0;  ///< of streamed weights, counted at the link; bytes_in_cache are among them
  std::uint64_t bytes_ahead = 0;     ///< of bytes_streamed, those prefetched for a next call, that none has used yet
  std::uint64_t bytes_resident = 0;  ///< of weights and buffers that are on the device for good, now
  std::uint64_t copies = 0;          ///< copies the link was asked for
  std::uint64_t passes = 0;          ///< over streamed weights: in each they cross the link once, for all its calls
  std::uint64_t calls_in_passes = 0; ///< calls begun that were to read streamed weights; those made again count again
  std::uint64_t misses = 0;          ///< weights that a node wanted and that no prefetch had under way
  std::uint64_t bytes_in_place = 0;  ///< of rows that were looked up where they lie in host memory
  std::uint64_t bytes_in_cache = 0;  ///< of streamed weights that calls read where the page cache has them, on the host
  double call_us = 0;                ///< that calls which returned took, once it was their turn, waits below included
  double stall_us = 0;               ///< that compute waited for copies; on a GPU estimated from one wait in sixteen
  double wait_turn_us = 0;           ///< that threads of calls waited for a lane, and for memory of their own
  double wait_door_us = 0;           ///< that they waited for the passes before theirs
  double wait_calls_us = 0;          ///< that they waited for other calls of their pass
  std::uint64_t peak_device_bytes = 0; ///< high-water mark, since the budget was set, of what counts against it
  /// In use on the device, now, in no budget and not in PyTorch's allocator: CUDA's context, kernels, handles, what the
  /// program has allocated by itself, other processes. The same for all modules of a device; 0 where it is not known.
  std::uint64_t outside_bytes = 0;
};

OFFLOAD_API std::ostream& operator<<(std::ostream& out, const Stats& stats);

/// What calls have taken since weights were last placed (by a first call, a new budget, or what calls have shown), what
/// was planned for them, what bounds them and what would help.
struct OFFLOAD_API Report {
  double seconds = 0;    ///< since then
  Stats since;           ///< what was counted since then; bytes_resident, outside_bytes, peak_device_bytes: as in Stats
  double link_share = 0; ///< of that time, in which the link was in use, by what copies cost on this machine
  Prediction predicted;
  Bound bound = Bound::neither; ///< as predicted; where the run deviates from that, as far as stalls tell
  Deviation deviation;          ///< of the run from what was predicted, with its reason; none in a pool
  std::vector<Advice> advice;   ///< what would help most first; none in a pool, and where `bound` is not as predicted

  /// That a call was under way, on average. On a GPU it returns before the device has done it: one that streams waits
  /// for the device nevertheless, one that is wholly resident does not.
  double call_us() const;
  double calls_in_pass() const;         ///< on average; 0 when nothing streams
  std::uint64_t bytes_per_call() const; ///< over the link, without what is ahead; on average
};

OFFLOAD_API std::ostream& operator<<(std::ostream& out, const Report& report);

class Session;

/// A TorchScript module that runs under a budget of device memory. Called as torch::jit::Module is.
///
/// Any thread may call any member at any time. A call computes on the caller's current CUDA stream, as an operator
/// does: it starts after what was enqueued there before, and what is enqueued there afterwards starts after it. It does
/// not wait for the device, except where a plan is made for it: the first call, and one that takes more memory than is
/// left beside the weights.
///
/// A handle: copies share weights, ring and statistics. It may be assigned to, copied and moved from while others call
/// members through it; each of them works on the module that the handle had when it began. A handle that was moved from
/// has no module: its members throw Error.
///
/// A module ends with its last handle, which first waits for members that are at work. So a handle may be destroyed
/// while they are, if no other member begins then. The last handle must not be destroyed within a call of its module.
///
/// An operator may ask the module whose call it is part of. Another call of it, a new budget, or release(), throws
/// Error there.
///
/// In a child of fork() every member of a module of the parent throws Error. The child may load modules of its own: on
/// a GPU only if the parent has used none, and with one thread (at::set_num_threads) if the parent has computed with
/// more, since operators would wait for threads of OpenMP that the child does not have. If an operator, or
/// Options::progress, has forked, the child must not return from it.
class OFFLOAD_API Module {
 public:
  /// Runs `forward`. Tensors in `inputs` are on the device of the module. Outputs are ordinary tensors.
  /// A call may be larger than any before: it makes room for itself. Throws
  ///   InputError    for arguments that do not fit the signature, and where the model differentiates while gradients
  ///                 are off (Options::gradients);
  ///   BudgetError   when the call does not fit the budget, whatever else gives way;
  ///   ArchiveError  when a weight comes from a file that has changed or can not be read;
  ///   Error         when the device has less than the budget, or a copy fails;
  /// and whatever the model raises. The module can be called again after any of them, and what is placed stays so.
  c10::IValue forward(std::vector<c10::IValue> inputs, const Kwargs& kwargs = {});

  /// The same for any method of the TorchScript module.
  c10::IValue run_method(const std::string& name, std::vector<c10::IValue> inputs, const Kwargs& kwargs = {});

  /// An attribute, or an element of one, by its qualified name, as in "layers.3.weight". Tensors come as host copies.
  /// In a model that writes its state it waits for the calls in flight. Throws InputError when there is no such
  /// attribute, and ArchiveError for a weight that is not resident, on a file that has changed or can not be read.
  c10::IValue attr(const std::string& name) const;

  /// The signature of a method, for as long as the module lives. Throws InputError when there is no such method.
  const c10::FunctionSchema& schema(const std::string& method) const;

  c10::Device device() const;
  Placement placement() const;

  /// When what happens in a call that is placed so: of one caller, in a row of calls, by simulation.
  Timeline predicted_timeline() const;
  Stats stats() const;

  /// Simulates what would help, on what calls have shown until now: a dozen plans, which take milliseconds, of a large
  /// model for several callers seconds. Calls are not held up.
  Report report() const;

  /// What link, device and host did in the last call that was timed, and has ended on the device. Of the calls that are
  /// like those that plans are made for, and that no other call was beside, the first three are timed, and then the
  /// 4th, 8th, 16th and so on up to the 1024th. None before the first of them.
  std::optional<Timeline> recorded_timeline() const;

  /// Plans anew for `bytes` once the calls in flight are done; calls that come meanwhile wait. Throws BudgetError when
  /// it is below the minimum, and ArchiveError when weights are still read from the file and that has changed: the
  /// module is as it was then. Throws Error when the device has not so much. Of a module in a pool: the most that its
  /// weights may take of the pool's budget; with 0 none stays.
  void set_vram_budget(std::uint64_t bytes);

  /// Gives back the device memory of weights, ring and calls once the calls in flight are done, but for what must stay
  /// and what calls have put into the module. The budget stays as it is, and others may use it: the next call takes
  /// the memory again, and throws Error when the device has not so much by then. In a pool, that of its weights, which
  /// the pool gives to other modules until it is called.
  void release();

  Module(const Module& other);
  Module(Module&& other) noexcept;
  Module& operator=(Module other) noexcept;
  ~Module();

  explicit Module(std::shared_ptr<Session> session);

 private:
  class Shared;
  class Access;

  std::unique_lock<std::mutex> lock() const;

  Process process_; // that the module belongs to
  mutable std::mutex mutex_;
  std::shared_ptr<Shared> shared_; // null when it was moved from
};

/// Loads a TorchScript archive. Throws ArchiveError when `path` is not an archive or cannot be read, BudgetError when
/// no placement fits, InputError for options that contradict each other or the machine, and for a `forward` that calls
/// torch.autograd.grad though gradients are off.
///
/// Weights that go to host memory are read beside the first calls, which wait for what they need. Those calls throw
/// ArchiveError where a weight can not be read, and Error where page-locking is refused.
OFFLOAD_API Module load(const std::string& path, const Options& options = {});

/// Adopts a module that is in memory. It is consumed: other handles to it hold placeholders from then on. Throws as
/// load() does, and what one of Options::example_calls raises or Options::progress throws; then the module is as it
/// was.
OFFLOAD_API Module wrap(torch::jit::Module module, const Options& options = {});

} // namespace offload
