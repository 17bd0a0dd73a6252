#pragma once

#include <c10/core/Device.h>

#include <cstdint>
#include <functional>
#include <vector>

#include <tools/times.h>

namespace offload::tools {

/// Some calls, none of which waits for the one before, from an idle link to an idle link, and what bounds them,
/// measured right before and after: clocks of a device go up and down, and machines share their links and memory.
struct Block {
  Times call_us;
  double window_us = 0;
  Times plain_us;                    ///< the reference wholly on the device
  bool in_turn = false;              ///< each plain call was made right after one of ours
  double link_bytes_per_us = 0;      ///< mean of before and after
  double host_copy_bytes_per_us = 0; ///< likewise, where weights are staged; else 0

  /// The larger of the median and the window divided by its calls: neither hides what the other shows. The median
  /// alone where plain calls were made in turn.
  double time_us() const;

  /// The larger of the plain time and what `bytes` take on the link, or on the host copy if that is slower.
  double limit_us(std::uint64_t bytes) const;
};

/// One budget's calls. What is said of them is the median of what each block says.
struct Blocks {
  std::vector<Block> blocks;
  Times waited_us; ///< of a few calls, each made when the output of the one before was there

  std::size_t calls() const; ///< all that were made
  double time_us() const;
  double limit_us(std::uint64_t bytes) const;
  double ratio_to_limit(std::uint64_t bytes) const;
  double link_bytes_per_us() const;
  double host_copy_bytes_per_us() const;
  double average_us() const; ///< windows divided by their calls
  double window_us() const;  ///< of all blocks together
  Times call_us() const;     ///< likewise
  Times plain_us() const;    ///< likewise
};

/// What bounds our calls, and how to measure it.
struct Yardstick {
  c10::Device device{c10::kCPU};
  std::function<void()> plain;  ///< empty where the reference finds no room beside ours
  Times plain_us;               ///< of before; used then
  double link_bytes_per_us = 0; ///< of a host, where it is not measured again
  bool staged = false;
};

/// Makes so many calls, none of which waits for the one before, from an idle device to an idle device: their times and
/// their window.
void time_block(const std::function<void()>& call, int calls, c10::Device device, Block& block);

/// Makes at least `calls` calls in a few blocks of a third of a second or more. Where nothing `streams`, in one, in
/// turn with plain calls if there are any.
Blocks measure_blocks(const std::function<void()>& call, int calls, bool streams, const Yardstick& yardstick);

/// The rate of page-locked copies of 256 MiB to a GPU, by its own events: the median of `copies`.
double link_bytes_per_us(c10::Device device, int copies);

/// Bytes that are free on the device.
std::uint64_t free_bytes(c10::Device device);

/// Until the output of the last call is there. The link may go on with what the next call reads.
void wait_for_call(c10::Device device);

/// Until nothing is under way on any stream.
void wait_until_idle(c10::Device device);

Times time_calls(int warm_up, int calls, c10::Device device, const std::function<void()>& call);

} // namespace offload::tools
