#pragma once

#include <c10/core/Device.h>

#include <cstdint>

#include <offload/bytes.h>

namespace offload {

constexpr std::uint64_t kMargin = 512_MiB; ///< left free by a default budget

/// What a process has of the memory of a GPU that is not here, before any budget: context, kernels and handles. On an
/// H200 530 MiB before the first product, and 690 to 850 MiB after some (docs/benchmarks/2026-11-29-h200/outside.txt).
constexpr std::uint64_t kContextElsewhere = 768_MiB;

/// Of `device`, now. On a host, what the page cache has counts as free.
std::uint64_t free_bytes(c10::Device device);

} // namespace offload
