#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <offload/export.h>

namespace offload {

/// What things cost on one machine. Measured once (see measure.h), shipped with the library (see below), or written by
/// hand for a machine that is not here.
struct MachineProfile {
  std::string name;                      ///< as printed in plans
  double link_bytes_per_us = 0;          ///< host memory to ring, large copies
  double copy_overhead_us = 0;           ///< of each copy, whatever its size
  double host_copy_bytes_per_us = 0;     ///< ordinary memory to staging buffers, all threads together
  double file_bytes_per_us = 0;          ///< a file that is not cached, several reads in flight
  double memory_bytes_per_us = 0;        ///< device memory, read once
  double fp64_flops_per_us = 0;          ///< large matrix products
  double fp32_flops_per_us = 0;          ///< without TF32
  double half_flops_per_us = 0;          ///< bf16 and fp16, accumulated in fp32
  double node_overhead_us = 0;           ///< the least time between two nodes: launch and interpreter
  std::uint64_t device_memory_bytes = 0; ///< of the GPU, as CUDA reports it; 0: no GPU, the host is the device
};

/// With the version of the format.
OFFLOAD_API std::string to_json(const MachineProfile& profile);

/// Throws InputError that names the key when one is missing, unknown, or not a positive number, and says what to do
/// where the format is of another version.
OFFLOAD_API MachineProfile profile_from_json(const std::string& json);

/// What a vendor publishes of a machine: peaks that no program reaches.
struct PublishedRates {
  double link_gb_per_s = 0; ///< in one direction
  double memory_gb_per_s = 0;
  double fp64_tflops = 0;
  double fp32_tflops = 0; ///< without TF32
  double half_tflops = 0; ///< dense, accumulated in fp32: where fp16 and bf16 differ, of bf16
};

/// A machine whose profile comes with the library. It follows from what is published, by factors that docs/machines.md
/// explains; nobody has measured it.
struct ShippedMachine {
  std::string name;       ///< short, as `plan --machine` takes it: "rtx4090-x8"
  int memory_gb = 0;      ///< of the GPU, as it is sold
  std::string link;       ///< "PCIe 4.0 x16"
  PublishedRates peak;    ///< of the GPU and its link
  std::string host;       ///< what host memory and files are assumed to be
  std::string sources;    ///< where the peaks of the GPU are published
  MachineProfile profile; ///< what large operations reach
};

/// All of them, always in the same order.
OFFLOAD_API const std::vector<ShippedMachine>& shipped_machines();

/// Throws InputError that lists the names where there is none of this name.
OFFLOAD_API MachineProfile shipped_profile(const std::string& name);

} // namespace offload
