#pragma once

#include <c10/core/Device.h>

#include <string>

#include <offload/export.h>
#include <offload/profile.h>

namespace offload {

/// What things cost on `device` and its link, measured now: about a second, some 600 MiB of the
/// device and as much of the host. The rate of files is left 0.
OFFLOAD_API MachineProfile measure_machine(c10::Device device);

/// Bytes per microsecond at which a file is read that is not cached, measured with one of 64 MiB in `folder`. 1000
/// where no file can be made there, so that there is a plan all the same.
OFFLOAD_API double measure_file_reads(const std::string& folder);

/// All costs of this machine, those of files too, from the cache of this user: the folder torch-offload/ in
/// $XDG_CACHE_HOME or ~/.cache, which nobody else may enter. There it is kept by device, slot, driver, LibTorch and
/// version of this library. What is not there, or can not be read, is measured and kept. That the cache can
/// not be written is no error. Where neither XDG_CACHE_HOME nor HOME is set there is no cache: each load measures, and
/// files count as giving 1000 bytes per microsecond.
OFFLOAD_API MachineProfile machine_profile(c10::Device device);

} // namespace offload
