#pragma once

#include <array>

namespace offload::tools {

/// Where a run of the record keeps the weights: the column `device` of its tables.
enum class Residence {
  cpu,    ///< all on the host, and computed there
  partly, ///< "Auto": some on the device; the others are brought there, used and dropped, one after the other
  gpu,    ///< all on the device
};

/// A line of the record that `bench` repeats: residual layers of fp32 with square weights, input [features, features].
struct RecordRow {
  int table;
  const char* hardware;
  Residence residence;
  int layers;
  int layer_mib;
  int layers_on_gpu;
  double average_ms;
};

inline constexpr const char* kDesktop = "i9-14900k, 64GB memory, rtx 4090";
inline constexpr const char* kWorkstation = "Xeon W-2133, 32GB memory, gtx 1066";

// clang-format off
inline constexpr std::array kRecord = {
    RecordRow{1, kDesktop, Residence::cpu, 512, 4, 0, 939.8},
    RecordRow{1, kDesktop, Residence::partly, 512, 4, 0, 490},
    RecordRow{1, kDesktop, Residence::partly, 512, 4, 253, 272},
    RecordRow{1, kDesktop, Residence::partly, 512, 4, 512, 32},
    RecordRow{1, kDesktop, Residence::gpu, 512, 4, 512, 32.4},
    RecordRow{2, kDesktop, Residence::cpu, 1024, 4, 0, 1839.8},
    RecordRow{2, kDesktop, Residence::partly, 1024, 4, 0, 954},
    RecordRow{2, kDesktop, Residence::partly, 1024, 4, 252, 787},
    RecordRow{2, kDesktop, Residence::partly, 1024, 4, 508, 530},
    RecordRow{2, kDesktop, Residence::partly, 1024, 4, 764, 312.5},
    RecordRow{2, kDesktop, Residence::partly, 1024, 4, 1020, 69.7},
    RecordRow{2, kDesktop, Residence::gpu, 1024, 4, 1024, 65.9},
    RecordRow{3, kDesktop, Residence::cpu, 256, 16, 0, 864},
    RecordRow{3, kDesktop, Residence::partly, 256, 16, 0, 844.7},
    RecordRow{3, kDesktop, Residence::partly, 256, 16, 60, 669.9},
    RecordRow{3, kDesktop, Residence::partly, 256, 16, 124, 494.2},
    RecordRow{3, kDesktop, Residence::partly, 256, 16, 188, 372.7},
    RecordRow{3, kDesktop, Residence::partly, 256, 16, 252, 152.5},
    RecordRow{3, kDesktop, Residence::gpu, 256, 16, 256, 119},
    RecordRow{4, kDesktop, Residence::cpu, 64, 64, 0, 8501},
    RecordRow{4, kDesktop, Residence::partly, 64, 64, 0, 898},
    RecordRow{4, kDesktop, Residence::partly, 64, 64, 12, 755.2},
    RecordRow{4, kDesktop, Residence::partly, 64, 64, 28, 598},
    RecordRow{4, kDesktop, Residence::partly, 64, 64, 44, 419.7},
    RecordRow{4, kDesktop, Residence::partly, 64, 64, 60, 263.7},
    RecordRow{4, kDesktop, Residence::partly, 64, 64, 64, 70.54},
    RecordRow{4, kDesktop, Residence::gpu, 64, 64, 64, 69.8},
    RecordRow{5, kWorkstation, Residence::cpu, 64, 64, 0, 17419},
    RecordRow{5, kWorkstation, Residence::partly, 64, 64, 0, 3783.4},
    RecordRow{5, kWorkstation, Residence::partly, 64, 64, 12, 3415},
    RecordRow{5, kWorkstation, Residence::partly, 64, 64, 28, 3004},
    RecordRow{5, kWorkstation, Residence::partly, 64, 64, 44, 2536},
    RecordRow{5, kWorkstation, Residence::partly, 64, 64, 60, 2101},
    RecordRow{5, kWorkstation, Residence::partly, 64, 64, 64, 1163},
    RecordRow{5, kWorkstation, Residence::gpu, 64, 64, 64, 1213},
};
// clang-format on

} // namespace offload::tools
