#pragma once

#include <c10/core/Device.h>

#include <offload/export.h>
#include <offload/plan/profile.h>

namespace offload {

/// What things cost on `device` and its link, measured now: about a second, some 600 MiB of the device.
OFFLOAD_API MachineProfile measure_machine(c10::Device device);

/// The same from the cache of this user ($XDG_CACHE_HOME or ~/.cache, torch-offload/), measured and kept there when it
/// is not in it. A cache that can not be written is no error.
OFFLOAD_API MachineProfile machine_profile(c10::Device device);

} // namespace offload
