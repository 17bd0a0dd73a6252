#pragma once

#include <c10/core/Device.h>
#include <torch/csrc/jit/api/module.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <offload/core/promises.h>
#include <offload/device/memory.h>
#include <offload/graph/program.h>
#include <offload/io/file.h>
#include <offload/options.h>
#include <offload/plan/host_layout.h>
#include <offload/plan/pass.h>

namespace offload {

/// A module with all that is known of it before it is called.
struct Model {
  c10::Device device = c10::kCPU;
  bool elsewhere = false; ///< planned for the GPU of `machine`, which is not here: see preview()
  Program program;
  int lanes = 1; ///< the most calls in flight
  Rule rule = Rule::fastest;
  int callers = 1; ///< at the same time, that are planned for until calls show how many there are
  MachineProfile machine;
  WeightTablePtr weights;
  HostLayout host;
  std::shared_ptr<const File> file; ///< that weights lie in; null when all are in memory
  bool maps_file = false;           ///< see Options::map_file
  std::uint64_t ranges_bytes = 0;   ///< of what always stays on the device: ranges of bytes
  std::uint64_t fixed = 0;          ///< all of it, in the units that the device gives out

  bool is_for_gpu() const { return elsewhere || device.is_cuda(); }
  std::size_t count() const { return weights->size(); }
  const WeightEntry& weight(WeightId id) const { return (*weights)[id]; }

  Pass pass_of(const std::vector<LeasedStep>& steps) const { return make_pass(weights, steps, machine); }

  /// The steps of a method as its graph has them; none where there is no such method.
  std::vector<LeasedStep> static_steps(const std::string& method) const;
};

/// The unit in which `device` gives out memory.
inline std::uint64_t granularity(c10::Device device) { return device.is_cuda() ? kDeviceGranularity : 512; }
inline std::uint64_t granularity(const Model& model) { return model.is_for_gpu() ? kDeviceGranularity : 512; }

/// The method that plans are made for until calls have shown another.
std::string first_planned_method(const Program& program, const Options& options);

/// Looks at a module without changing it. `machine` has the costs of a machine that is not here. `host_promise` is set
/// to what the weights will take of host memory. Throws InputError for what can not be adopted.
Model examine(const torch::jit::Module& module, const Options& options, const std::optional<MachineProfile>& machine,
              Promise& host_promise);

} // namespace offload
