#pragma once

#include <c10/core/Device.h>

#include <offload/core/mark.h>
#include <offload/device/cuda_calls.h>

namespace offload {

/// After all that `stream` of `device` has been given. `events` have times. Throws Error when the device refuses.
MarkPtr mark_stream(c10::DeviceIndex device, cudaStream_t stream, EventPool& events);

} // namespace offload
