#pragma once

#include <c10/core/Device.h>
#include <torch/csrc/jit/ir/ir.h>

#include <set>
#include <utility>
#include <vector>

namespace offload {

/// What has to change in a graph for it to run on another device, by where it says that tensors lie.
///
/// Operators give results where their tensors are, and take no tensors of two devices, except scalars. What decides
/// where a tensor is, is called its origin: a constant that names the CPU, a tensor that is a constant, or an operator
/// that makes a tensor without an argument that says where. An origin moves to the device unless all that it decides
/// can stay on the host, and some of it has to, since an operator takes it nowhere else. Where a tensor has to be on
/// the host for one operator and meets tensors of the device in another, it moves, and the first gets a copy.
struct DeviceChanges {
  /// Uses of constants, devices or tensors, that stay as they are: node and input.
  std::set<std::pair<const torch::jit::Node*, std::size_t>> staying;

  /// Inputs that would name a device, of operators that make a tensor without one, and have to make it on the device.
  std::vector<torch::jit::Use> made_without_device;

  /// Inputs that have to be on the host, and may be on the device.
  std::vector<torch::jit::Use> to_copy;
};

DeviceChanges find_device_changes(torch::jit::Graph& graph, c10::Device device);

} // namespace offload
