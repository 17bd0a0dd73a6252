#pragma once

#include <c10/core/Device.h>
#include <torch/csrc/jit/ir/ir.h>

#include <unordered_map>
#include <vector>

namespace offload {

/// Where a graph says that tensors lie, and which of that has to change for it to run on another device.
///
/// Operators give results where their tensors are, and take no tensors of two devices, except scalars. What decides
/// where a tensor is, is called its origin: a constant that names the CPU, a tensor that is a constant, or an operator
/// that makes a tensor without an argument that says where. An origin moves to the device unless all that it decides
/// can stay on the host, and some of it has to, since an operator takes it nowhere else. Where a tensor has to be on
/// the host for one operator and meets tensors of the device in another, it moves, and the first gets a copy.
class DeviceFlow {
 public:
  DeviceFlow(torch::jit::Graph& graph, c10::Device device);

  /// Uses of constants, devices or tensors, that stay as they are.
  bool stays(const torch::jit::Use& use) const;

  /// Inputs that would name a device, of operators that make a tensor without one, and have to make it on the device.
  const std::vector<torch::jit::Use>& made_without_device() const { return made_without_device_; }

  /// Inputs that have to be on the host, and may be on the device.
  const std::vector<torch::jit::Use>& to_copy() const { return to_copy_; }

 private:
  using Node = torch::jit::Node;
  using Value = torch::jit::Value;
  using Origins = std::vector<bool>; // by number

  /// What decides where a value is: several things where they meet, or where the run picks. None of them: it is no
  /// tensor, or a scalar, which operators take from anywhere.
  struct Fact {
    bool on_device = false; // what the caller gives, and what the module holds
    bool on_host = false;   // results that are always there
    Origins origins;
    std::vector<Fact> elements; // of a tuple whose elements are known one by one

    bool operator==(const Fact&) const = default;
  };

  void look_at(torch::jit::Block* block);
  void look_at(Node* node);
  void note(const Value* value, const Fact& more);
  Fact fact_of(Node* user, std::size_t input);
  Fact origin_of(const torch::jit::Use& use);
  Fact result_of(Node* node);
  static void merge(Fact& into, const Fact& more);
  static Fact flat(const Fact& fact);
  static Fact element_of(const Fact& tuple, std::size_t index);
  void find_what_stays(torch::jit::Graph& graph);
  bool is_on_device(const Fact& fact, const Origins& moved) const;

  c10::Device device_;
  std::vector<torch::jit::Use> origins_; // of factories: the node, and its input that would name a device
  std::unordered_map<const Node*, std::unordered_map<std::size_t, std::size_t>> numbers_; // of origins, by use
  std::unordered_map<const Value*, Fact> facts_;
  bool changed_ = false;

  Origins moved_;
  std::vector<torch::jit::Use> made_without_device_;
  std::vector<torch::jit::Use> to_copy_;
};

} // namespace offload
