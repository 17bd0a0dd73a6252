#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>
#include <torch/csrc/jit/api/module.h>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include <offload/stream/scheduler.h>

namespace offload {

/// A byte range of one storage that tensors of a module share: one weight, however many names and views it has.
struct Weight {
  std::string name;                 ///< qualified name of the first tensor found
  std::vector<std::string> aliases; ///< of the others
  c10::Storage storage;
  std::uint64_t begin; ///< byte range in the storage
  std::uint64_t end;
  bool is_parameter = false;

  std::uint64_t bytes() const { return end - begin; }
};

/// The weights of a module and where its attributes refer to them.
struct ModuleWeights {
  std::vector<Weight> weights; ///< index = WeightId; in the order of attributes

  /// Identity of a tensor that a module holds: its storage and first byte.
  WeightId id_of(const at::Tensor& tensor) const;

  /// All weights that are reachable from a value: a tensor, a container, an object.
  std::vector<WeightId> reachable(const c10::IValue& value) const;

  std::map<std::pair<const void*, std::uint64_t>, WeightId> ids; // storage and first byte of each tensor
};

/// What holds the weights of a program: the module, and after it, perhaps, what holds the constants of its graphs.
using Holders = std::vector<torch::jit::Module>;

/// Weights below this size are resident: a lease costs more than they do.
constexpr std::uint64_t kSmallBytes = 16ULL << 10;

/// Walks every attribute: parameters, buffers, tensors in lists, tuples, dicts, optionals and objects. Tensors of one
/// storage whose byte ranges overlap are one weight. Tensors without dense strided storage (sparse, quantised, meta)
/// are left out.
ModuleWeights find_weights(const Holders& holders);

/// True for tensors that find_weights takes.
bool is_weight_like(const at::Tensor& tensor);

/// First and last byte (exclusive) of a tensor in its storage.
std::pair<std::uint64_t, std::uint64_t> byte_range(const at::Tensor& tensor);

/// Puts `replace(tensor)` in the place of every tensor that the holders have in attributes and containers.
/// Tensors that are not weight-like stay.
void replace_tensors(const Holders& holders, const std::function<at::Tensor(const at::Tensor&)>& replace);

} // namespace offload
