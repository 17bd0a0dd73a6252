#pragma once

#include <ATen/core/ivalue.h>
#include <c10/core/Device.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include <offload/bytes.h>
#include <offload/rule.h>

namespace offload {

using Kwargs = std::unordered_map<std::string, c10::IValue>;

/// One call as the program will make it. It is run once at load to learn shapes, order and activations; what it writes
/// in the module is put back, what it writes into its inputs is not.
struct ExampleCall {
  std::string method = "forward";
  std::vector<c10::IValue> inputs;
  Kwargs kwargs = {};
};

/// Which differences from the model run wholly on the device are allowed.
/// Only `exact` is supported so far: the others throw InputError.
enum class Numerics {
  exact,    ///< none: bit-identical
  rounding, ///< the order of sums may change, as when the host computes a part
  lossy,    ///< values may change, as when weights are quantised for the link
};

/// Whether a call may be differentiated by the model itself. The model may turn gradients on in any case, as by
/// torch.set_grad_enabled(True). Outputs come without their graphs, and so does what a call puts into the module: from
/// outside, nothing can be differentiated.
///
/// While gradients are on, what is saved for backward holds the weights: all that a method reads have to find room in
/// the budget together.
enum class Gradients {
  off,     ///< calls run without gradients, whatever their caller has set
  callers, ///< methods that call torch.autograd.grad run as their caller has set it; all others without gradients
};

class Pool;

struct Options {
  /// A pool whose budgets the module lives on, beside others (offload/pool.h). `device` is then the pool's, and
  /// `concurrency`, `host_budget` and `pinned_budget` are left out. `vram_budget` is the most that its weights may take
  /// of the pool's. A model that writes its state can not live in a pool.
  std::shared_ptr<Pool> pool;

  /// What a call of the module is worth beside those of others, where a pool chooses what stays on the device.
  double weight = 1;

  /// Where the model runs. Default: CUDA 0 where there is one, else the CPU. On the CPU, `vram_budget` is the memory
  /// that weights may take; what does not fit is read from the file, or, after wrap(), from where it lies in memory.
  std::optional<c10::Device> device;

  /// Bytes on the device for everything of this model: resident weights, ring, buffers, workspaces, activations.
  /// The CUDA context, inputs and outputs are outside it. Default: what is free at load less 512 MiB; where that is
  /// below the smallest budget, the smallest budget, as far as it is free. On the host, what the page cache has counts
  /// as free. What other modules of this process have been given does not, even before they take it: all of a budget
  /// that was set for a GPU, and else what their plans take.
  std::optional<std::uint64_t> vram_budget;

  /// Bytes of host memory for weights, and for buffers: 8 MiB to read a file, 32 MiB to stage. Default: what is free at
  /// load, as above, less a sixteenth of it or 512 MiB, whichever is more.
  std::optional<std::uint64_t> host_budget;

  /// On the host, weights that stay on the file are read through a mapping where the page cache has them, and past the
  /// cache where it does not. While the module lives, nobody must cut the file short or write into it: a process that
  /// reads a mapping past the end of its file gets a signal (SIGBUS). Another file may take its name at any time. Size
  /// and time of the file are checked whenever such a weight is used, and when the call ends; if they have changed, the
  /// call throws ArchiveError. With false, weights are copied at each use, and a file that is cut is an ArchiveError.
  bool map_file = true;

  /// Page-locked bytes, staging buffers included. Default: what `host_budget` allows.
  std::optional<std::uint64_t> pinned_budget;

  /// The most calls in flight at once, 1 to 64; more callers wait their turn. Each call has workspaces and activations
  /// of its own, and begins when there is room for them. Room is kept for as many at once as pay: what another call
  /// takes is room that weights do not have. If it is given, the module is planned for so many callers, until calls
  /// show that there are fewer; by default for one, until there are more, and 8 are the most. A model that writes its
  /// state makes one call at a time in any case.
  std::optional<int> concurrency;

  std::vector<ExampleCall> example_calls;

  /// Leave it as it is, but to compare. In a pool there is no other.
  Rule rule = Rule::fastest;

  Numerics numerics = Numerics::exact;

  /// A model that was traced on the CPU names the CPU in its graph, where it makes tensors and moves them. By default
  /// such constants become `device`. They stay where an operator takes the tensor from the host only, as it does
  /// lengths of packed sequences; if the device wants the tensor as well, it moves, and that operator gets a copy. A
  /// tensor that is made without naming a device is made where it is used. Placement::rewritten lists all changes.
  bool rewrite_devices = true;

  Gradients gradients = Gradients::off;

  /// Told, one call at a time, how many bytes have come to where they stay until a call needs them, and of how many.
  /// Weights that stay on the file do not count; if none are brought, it is told once, 0 of 0. At load it is called on
  /// the thread that loads, and what it throws ends the load. For weights that are read from a file beside the first
  /// calls, it is called on threads of the module; what it throws is thrown by a call that waits for weights, or else
  /// by the next call. It may ask the module for its statistics, and must not destroy the module's last handle.
  std::function<void(std::uint64_t done, std::uint64_t total)> progress;
};

} // namespace offload
