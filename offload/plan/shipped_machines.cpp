// Profiles of machines that are not here: what is published of them, and how much of that large operations reach.

#include <offload/profile.h>

#include <algorithm>

#include <offload/bytes.h>
#include <offload/error.h>

namespace offload {

namespace {

/// What large operations reach, as a part of what is published. docs/machines.md has the reasons.
namespace reached {
constexpr double kLink = 0.8;         // of PCIe 3.0 and 4.0, by page-locked copies of 16 MiB
constexpr double kLinkOfPcie5 = 0.87; // measured: 55 of 63 GB/s
constexpr double kMemory = 0.85;      // of device memory
constexpr double kProducts = 0.75;    // of fp64 and fp32; measured on an H200: 50 of 67 TFLOP/s
constexpr double kTensorCores = 0.8;  // of bf16 and fp16
constexpr double kLowPower = 0.5;     // of all products, on boards whose power does not sustain the clock
constexpr double kHostMemory = 0.5;   // of the channels of host memory, by threads that copy
constexpr double kFile = 0.8;         // of sequential reads
constexpr double kSize = 0.98;        // of the memory that is sold, the driver leaves so much
constexpr double kSizeWithEcc = 0.91; // and so much where error correction takes its bits from it
} // namespace reached

/// Of each copy and each node. They depend on the processor more than on the GPU, and are alike on all of these.
constexpr double kCopyUs = 2;
constexpr double kNodeUs = 5;

/// Threads copy no faster, however many channels there are: measured with 16 cores.
constexpr double kMostHostCopyGbPerS = 55;

struct Host {
  const char* text;
  double memory_gb_per_s; // of all channels
  double file_gb_per_s;
};

struct Gpu {
  const char* name;
  int memory_gb;
  double memory_gb_per_s;
  double fp64_tflops;
  double fp32_tflops;
  double half_tflops;
  int pcie;       // generation
  bool low_power; // 150 W or less for a chip that is also sold with more, and error correction in ordinary GDDR6
  const char* sources;
};

// clang-format off
constexpr Host kDesktop{"typical: 2 channels of DDR5-5600, NVMe on PCIe 4.0", 89.6, 7};
constexpr Host kOlderDesktop{"typical: 2 channels of DDR4-3200, NVMe on PCIe 3.0", 51.2, 3.5};
constexpr Host kCoreI9{"Core i9-14900K: 2 channels of DDR5-5600 (Intel's specifications), typical NVMe on PCIe 4.0", 89.6, 7};
constexpr Host kXeonW{"Xeon W-2133: 4 channels of DDR4-2666 (Intel's specifications), typical NVMe on PCIe 3.0", 85.3, 3.5};
constexpr Host kServer{"typical: 8 channels of DDR4-3200, NVMe on PCIe 4.0", 204.8, 7};
constexpr Host kLaterServer{"typical: 8 channels of DDR5-4800, NVMe on PCIe 4.0", 307.2, 7};

//                                                        GB  GB/s   fp64   fp32   half  PCIe, low power
constexpr Gpu kGtx1060{"NVIDIA GeForce GTX 1060 6GB",      6,  192, 0.137,   4.4,   4.4, 3, false,
  "NVIDIA's specifications of the GTX 1060 (1280 cores at 1.71 GHz); fp64 1/32 of fp32; no tensor cores: half as fp32"};
constexpr Gpu kRtx3060{"NVIDIA GeForce RTX 3060 12GB",    12,  360,  0.20,  12.7,  25.5, 4, false,
  "NVIDIA's specifications of the RTX 3060 (3584 cores at 1.78 GHz); rates of a core as in NVIDIA's Ampere GA102 whitepaper"};
constexpr Gpu kRtx4060Ti{"NVIDIA GeForce RTX 4060 Ti 16GB", 16, 288, 0.34,  22.1,  44.1, 4, false,
  "NVIDIA's specifications of the RTX 4060 Ti (4352 cores at 2.54 GHz, 8 lanes); rates of a core as in NVIDIA's Ada whitepaper"};
constexpr Gpu kRtx4090{"NVIDIA GeForce RTX 4090",         24, 1008,  1.29,  82.6, 165.2, 4, false,
  "NVIDIA Ada GPU Architecture whitepaper (fp16 with fp32 accumulate, dense)"};
constexpr Gpu kRtx5090{"NVIDIA GeForce RTX 5090",         32, 1792,  1.64, 104.8, 209.5, 5, false,
  "NVIDIA RTX Blackwell GPU Architecture whitepaper (fp16 with fp32 accumulate, dense)"};
constexpr Gpu kL4{"NVIDIA L4",                            24,  300,  0.47,  30.3,   121, 4, true,
  "NVIDIA L4 data sheet (72 W; fp16 without sparsity: half of what it lists); fp64 1/64 of fp32"};
constexpr Gpu kA10{"NVIDIA A10",                          24,  600,  0.49,  31.2,   125, 4, true,
  "NVIDIA A10 data sheet (150 W; fp16 dense); fp64 1/64 of fp32"};
constexpr Gpu kA100Of40{"NVIDIA A100 40GB",               40, 1555,  19.5,  19.5,   312, 4, false,
  "NVIDIA A100 data sheet (bf16 dense, fp64 of tensor cores)"};
constexpr Gpu kA100Of80{"NVIDIA A100 80GB",               80, 2039,  19.5,  19.5,   312, 4, false,
  "NVIDIA A100 data sheet, SXM (bf16 dense, fp64 of tensor cores; the memory of the PCIe card: 1935 GB/s)"};
constexpr Gpu kH100{"NVIDIA H100 80GB SXM",               80, 3350,    67,    67,   989, 5, false,
  "NVIDIA H100 data sheet, SXM (bf16 without sparsity: half of what it lists; fp64 of tensor cores)"};
constexpr Gpu kH100Pcie{"NVIDIA H100 80GB PCIe",          80, 2000,    51,    51,   756, 5, false,
  "NVIDIA H100 data sheet, PCIe (bf16 without sparsity: half of what it lists; fp64 of tensor cores)"};
constexpr Gpu kH200{"NVIDIA H200 141GB",                 141, 4800,    67,    67,   989, 5, false,
  "NVIDIA H200 data sheet, SXM (bf16 without sparsity: half of what it lists; fp64 of tensor cores)"};
// clang-format on

/// In one direction, after the coding of 128 bits in 130.
double link_gb_per_s(int generation, int lanes) {
  const double gigatransfers = generation == 3 ? 8 : generation == 4 ? 16 : 32;
  return gigatransfers * lanes * 128 / 130 / 8;
}

ShippedMachine make_machine(const char* name, const Gpu& gpu, const Host& host, int lanes) {
  ShippedMachine machine;
  machine.name = name;
  machine.memory_gb = gpu.memory_gb;
  machine.link = "PCIe " + std::to_string(gpu.pcie) + ".0 x" + std::to_string(lanes);
  machine.peak = {link_gb_per_s(gpu.pcie, lanes), gpu.memory_gb_per_s, gpu.fp64_tflops, gpu.fp32_tflops,
                  gpu.half_tflops};
  machine.host = host.text;
  machine.sources = gpu.sources;

  constexpr double kGbPerS = 1e3; // in bytes per microsecond
  constexpr double kTflops = 1e6; // in operations per microsecond
  const double products = gpu.low_power ? reached::kLowPower : reached::kProducts;
  const bool has_tensor_cores = gpu.half_tflops > gpu.fp32_tflops;
  const double half_products = has_tensor_cores && !gpu.low_power ? reached::kTensorCores : products;
  const double size = gpu.low_power ? reached::kSizeWithEcc : reached::kSize;
  MachineProfile& profile = machine.profile;
  profile.name = std::string(gpu.name) + ", " + machine.link + ", published figures";
  profile.link_bytes_per_us =
      machine.peak.link_gb_per_s * kGbPerS * (gpu.pcie == 5 ? reached::kLinkOfPcie5 : reached::kLink);
  profile.copy_overhead_us = kCopyUs;
  profile.host_copy_bytes_per_us = std::min(host.memory_gb_per_s * reached::kHostMemory, kMostHostCopyGbPerS) * kGbPerS;
  profile.file_bytes_per_us = host.file_gb_per_s * reached::kFile * kGbPerS;
  profile.memory_bytes_per_us = gpu.memory_gb_per_s * reached::kMemory * kGbPerS;
  profile.fp64_flops_per_us = gpu.fp64_tflops * products * kTflops;
  profile.fp32_flops_per_us = gpu.fp32_tflops * products * kTflops;
  profile.half_flops_per_us = gpu.half_tflops * half_products * kTflops;
  profile.node_overhead_us = kNodeUs;
  profile.device_memory_bytes = static_cast<std::uint64_t>(gpu.memory_gb * 1024 * size) * 1_MiB;
  return machine;
}

} // namespace

const std::vector<ShippedMachine>& shipped_machines() {
  static const std::vector<ShippedMachine> kMachines = {
      make_machine("gtx1060", kGtx1060, kOlderDesktop, 16),
      make_machine("gtx1060-x8", kGtx1060, kOlderDesktop, 8),
      make_machine("gtx1060-w2133", kGtx1060, kXeonW, 16),
      make_machine("rtx3060", kRtx3060, kOlderDesktop, 16),
      make_machine("rtx3060-x8", kRtx3060, kOlderDesktop, 8),
      make_machine("rtx4060ti", kRtx4060Ti, kDesktop, 8),
      make_machine("rtx4090", kRtx4090, kDesktop, 16),
      make_machine("rtx4090-x8", kRtx4090, kDesktop, 8),
      make_machine("rtx4090-i9-14900k", kRtx4090, kCoreI9, 16),
      make_machine("rtx5090", kRtx5090, kDesktop, 16),
      make_machine("rtx5090-x8", kRtx5090, kDesktop, 8),
      make_machine("l4", kL4, kServer, 16),
      make_machine("a10", kA10, kServer, 16),
      make_machine("a100-40gb", kA100Of40, kServer, 16),
      make_machine("a100-80gb", kA100Of80, kServer, 16),
      make_machine("h100", kH100, kLaterServer, 16),
      make_machine("h100-pcie", kH100Pcie, kLaterServer, 16),
      make_machine("h200", kH200, kLaterServer, 16),
  };
  return kMachines;
}

MachineProfile shipped_profile(const std::string& name) {
  std::string names;
  for (const ShippedMachine& machine : shipped_machines()) {
    if (machine.name == name) {
      return machine.profile;
    }
    names += (names.empty() ? "" : ", ") + machine.name;
  }
  throw InputError("no profile of a machine '" + name + "' is shipped; there are " + names);
}

} // namespace offload
