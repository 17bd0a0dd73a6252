#pragma once

#include <cstdint>
#include <string>

#include <offload/export.h>

namespace offload {

/// What things cost on one machine. Measured once (see measure.h), or written by hand for a machine that is not here.
struct MachineProfile {
  std::string name;                  ///< as printed in plans
  double link_bytes_per_us = 0;      ///< host memory to ring, large copies
  double copy_overhead_us = 0;       ///< of each copy, whatever its size
  double host_copy_bytes_per_us = 0; ///< ordinary memory to staging buffers, all threads together
  double file_bytes_per_us = 0;      ///< a file that is not cached, several reads in flight
  double memory_bytes_per_us = 0;    ///< device memory, read once
  double fp64_flops_per_us = 0;      ///< large matrix products
  double fp32_flops_per_us = 0;
  double half_flops_per_us = 0; ///< bf16 and fp16
  double node_overhead_us = 0;  ///< the least time between two nodes: launch and interpreter
};

OFFLOAD_API std::string to_json(const MachineProfile& profile);

/// Throws InputError that names the key when one is missing, unknown, or not a positive number.
OFFLOAD_API MachineProfile profile_from_json(const std::string& json);

} // namespace offload
