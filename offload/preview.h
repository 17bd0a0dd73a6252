#pragma once

#include <torch/csrc/jit/api/module.h>

#include <cstdint>
#include <optional>
#include <vector>

#include <offload/export.h>
#include <offload/options.h>
#include <offload/placement.h>
#include <offload/profile.h>
#include <offload/sweep.h>
#include <offload/timeline.h>

namespace offload {

/// The device that these options mean on this machine. Throws InputError when it is not there.
OFFLOAD_API c10::Device device_of(const Options& options);

/// The placement of `module` under `options`, before anything is placed. Without example calls nothing is moved or
/// allocated, and shapes and branches are not known: times are those of the weights alone, and both sides of a branch
/// count. Example calls are made on the device, with a ring of 128 MiB at most. The module is left as it was. `machine`
/// has the costs of a machine that is not here. The budget may be above what this one has. Throws as load() does.
///
/// Where `machine` has a GPU (MachineProfile::device_memory_bytes), the budget is of its memory: by default all but
/// what a process takes before any model, and 512 MiB. More than there is throws InputError. Host memory is what is
/// free here, or `host_budget`. Example calls are not made: they are told from the sizes of their arguments, without
/// reading a weight. Where values decide what a call does, it counts by its graph, and Placement::unsized says so.
OFFLOAD_API Placement preview(torch::jit::Module module, const Options& options,
                              const std::optional<MachineProfile>& machine = std::nullopt);

/// When what happens in a call that is placed so: of one caller, in a row of calls.
OFFLOAD_API Timeline timeline(torch::jit::Module module, const Options& options,
                              const std::optional<MachineProfile>& machine = std::nullopt);

/// What a call takes under each of `budgets`; of none, under some forty from the smallest to that in which all is
/// resident, or to `Options::vram_budget` if it is given and less. All from one preview: what is planned takes
/// milliseconds a budget. Throws as preview() does, and BudgetError for a budget that is too small.
OFFLOAD_API Sweep sweep(torch::jit::Module module, const Options& options,
                        const std::vector<std::uint64_t>& budgets = {},
                        const std::optional<MachineProfile>& machine = std::nullopt);

/// The smallest budget for a call of `time_us`, of those that a sweep tries and more around the first that reaches it.
OFFLOAD_API Fit fit(torch::jit::Module module, const Options& options, double time_us,
                    const std::optional<MachineProfile>& machine = std::nullopt);

} // namespace offload
