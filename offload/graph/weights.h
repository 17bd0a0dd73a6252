#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include <offload/core/words.h>
#include <offload/tensor/values.h>
#include <ops/lease.h>

namespace offload {

using WeightSet = std::set<WeightId>;

/// A byte range of one storage that tensors of a module share: one weight, however many names and views it has.
struct Weight {
  std::string name;                 ///< qualified name of the first tensor found
  std::vector<std::string> aliases; ///< of the others
  c10::Storage storage;
  std::uint64_t begin; ///< byte range in the storage
  std::uint64_t end;

  std::uint64_t bytes() const { return end - begin; }
};

/// A tensor that is no range of bytes: sparse, quantised, or of another kind. It stays on the device as it is.
struct OtherTensor {
  std::string name;
  at::Tensor tensor;

  std::uint64_t bytes() const;
};

/// The weights of a module and where its attributes refer to them.
struct ModuleWeights {
  std::vector<Weight> weights; ///< index = WeightId; in the order of attributes
  std::vector<OtherTensor> others;

  /// Identity of a tensor that a module holds: its storage and first byte. None when it is no weight.
  std::optional<WeightId> find(const at::Tensor& tensor) const;
  WeightId id_of(const at::Tensor& tensor) const { return find(tensor).value(); }

  /// All weights that are reachable from a value: a tensor, a container, an object.
  WeightSet reachable(const c10::IValue& value) const;

  std::map<std::pair<const void*, std::uint64_t>, WeightId> ids; // storage and first byte of each tensor
};

/// The objects that hold the weights of a program: the module, and after it, perhaps, what holds the constants of its
/// graphs.
using Holders = std::vector<c10::IValue>;

/// What of a storage belongs to a weight: the ranges that tensors of the module use, or all of it, where a graph may
/// reach past them.
enum class Extent { ranges, storages };

/// Walks every attribute: parameters, buffers, tensors in lists, tuples, dicts, optionals and objects. Tensors of one
/// storage whose byte ranges overlap are one weight. A range begins at a multiple of kAlignment. Tensors without dense
/// strided storage (sparse, quantised, meta) are `others`.
ModuleWeights find_weights(const Holders& holders, Extent extent = Extent::ranges);

using Replace = std::function<at::Tensor(const at::Tensor&)>;

/// Puts `replace(tensor)` in the place of every defined tensor that the holders have in attributes and containers.
void replace_tensors(const Holders& holders, const Replace& replace);

} // namespace offload
