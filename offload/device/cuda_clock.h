#pragma once

#include <c10/core/Device.h>

#include <memory>

#include <offload/core/lane_clock.h>
#include <offload/device/cuda_calls.h>

namespace offload {

/// Of a call that computes on `stream` of `device`, which is current while laps begin and end. `events` have times.
std::unique_ptr<LaneClock> make_cuda_clock(c10::DeviceIndex device, cudaStream_t stream,
                                           std::shared_ptr<EventPool> events);

} // namespace offload
