#pragma once

#include <c10/core/Device.h>

#include <string>

#include <offload/export.h>
#include <offload/profile.h>

namespace offload {

/// What things cost on `device` and its link, measured now: about a second, some 600 MiB of the
/// device and as much of the host. The rate of files is left 0.
OFFLOAD_API MachineProfile measure_machine(c10::Device device);

/// Bytes per microsecond at which a store reads a file that is not cached, measured with one of 64 MiB in `folder`;
/// 1000 where none can be made: that is no reason to have no plan.
OFFLOAD_API double measure_file_reads(const std::string& folder);

/// Both from the cache of this user ($XDG_CACHE_HOME or ~/.cache, torch-offload/, which nobody else may enter),
/// measured and kept there when it is not in it. A cache that can not be written is no error. Where neither is set
/// there is none: each load measures, and takes files to give 1000 bytes per microsecond.
OFFLOAD_API MachineProfile machine_profile(c10::Device device);

} // namespace offload
