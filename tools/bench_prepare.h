#pragma once

#include <torch/csrc/jit/api/module.h>

#include <cstdint>
#include <memory>
#include <vector>

#include <offload/graph/reference.h>
#include <offload/module.h>
#include <tools/bench_measure.h>

namespace offload::tools {

/// The share and what is added to it for the ring: never more than all weights, and nothing when all are resident.
RowResult row_of(const Case& stack, std::int64_t on_gpu, std::uint64_t ring);

/// A model that is about to be loaded, what it is compared with, and what its calls will take.
struct Prepared {
  torch::jit::Module host;
  at::Tensor input;
  at::Tensor expected;
  Options options;
  std::uint64_t activations = 0;
  std::uint64_t ring = 0;
  Times plain_us;
  Times fused_us;
  Times cpu_us;
  std::vector<Times> auto_us;           ///< by share
  std::unique_ptr<Reference> reference; ///< on the device beside ours, where both find room

  Yardstick yardstick(const MeasureOptions& with, bool staged) const;

  /// Loads with the budget of the smallest share, so that no high-water mark is above it.
  Module load(const RowResult& row);
};

/// Makes the model and, where `against` is true, measures what stands beside it. The plain run is always measured: the
/// limit and the check need it.
Prepared prepare(const Case& stack, const MeasureOptions& options, bool against);

} // namespace offload::tools
