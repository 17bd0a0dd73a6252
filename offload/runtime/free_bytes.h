#pragma once

#include <c10/core/Device.h>

#include <cstdint>

#include <offload/bytes.h>

namespace offload {

constexpr std::uint64_t kMargin = 512_MiB; ///< left free by a default budget

/// Of `device`, now. On a host, what the page cache has counts as free.
std::uint64_t free_bytes(c10::Device device);

} // namespace offload
