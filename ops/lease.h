#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/ArrayRef.h>
#include <c10/util/SmallVector.h>

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace offload {

/// One weight as a lease gives it: rows after rows, each part on the device that is to compute with it. Most have one.
struct LeasedWeight {
  struct Part {
    std::int64_t first_row;
    at::Tensor tensor;
  };

  explicit LeasedWeight(at::Tensor whole) : parts{{0, std::move(whole)}} {}

  /// For operators that want one tensor. Throws c10::Error when there are several.
  const at::Tensor& whole() const;

  c10::SmallVector<Part, 1> parts;
};

/// What a reader computes with the weights that it leases.
struct ProductSize {
  double flops = 0; ///< multiplications and additions, 0 when unknown
  double rows = 0;  ///< that are multiplied with the weights
  double bytes = 0; ///< that it reads and writes beside the weights
};

/// Lends the bytes of weights to operators: what the operators need to know of whoever owns them.
class Lender {
 public:
  virtual ~Lender() = default;

  /// The weight of each placeholder of this lender, all or none, with the sizes, strides and dtype of the placeholder.
  /// Their storages share one lease, which ends with the last reference to any. `size` is what the reader
  /// will compute with them. On the thread of a call only; throws Error otherwise, and when the bytes
  /// cannot come.
  virtual std::vector<LeasedWeight> lease(c10::ArrayRef<at::Tensor> placeholders, const ProductSize& size) = 0;

  /// The same for a reader that looks up `rows` rows: the tensor may lie in host memory that the device reads by
  /// itself.
  virtual at::Tensor lease_rows(const at::Tensor& placeholder, std::uint64_t rows) = 0;
};

/// Each placeholder in `tensors` is replaced by a lease; other tensors stay. `size` as in Lender::lease().
void lease_all(std::vector<at::Tensor>& tensors, const ProductSize& size);

/// [*, n] by [n, m]: each element of the first with m of the second.
ProductSize product_size(const at::Tensor& a, std::int64_t m);

/// Which weight a placeholder stands for.
struct PlaceholderRecord {
  std::shared_ptr<Lender> lender;
  std::uint32_t weight;
};

/// A storage of `bytes` on `device` without memory that stands for a weight. Reading it is an error that names `name`.
c10::Storage make_placeholder(std::shared_ptr<Lender> lender, std::uint32_t weight, const std::string& name,
                              std::uint64_t bytes, c10::Device device);

/// The record of a placeholder or of a view of one; null for any other tensor.
const PlaceholderRecord* placeholder_record(const at::Tensor& tensor);

/// The right to read the weights of one node on the device. It ends with the object.
class Lease {
 public:
  virtual ~Lease() = default;
};

/// `bytes` at `data` that are there for as long as `lease` lives: it ends with the last storage that shares it.
c10::Storage make_leased(std::shared_ptr<Lease> lease, void* data, std::uint64_t bytes, c10::Device device);

/// First and last byte (exclusive) of a tensor in its storage.
std::pair<std::uint64_t, std::uint64_t> byte_range(const at::Tensor& tensor);

/// What places, and parts of storages that are copied, are aligned to: results may depend on it.
constexpr std::uint64_t kAlignment = 512;

/// A tensor with geometry, dtype, requires_grad and conjugate and negative bits of `like` on `storage`, its offset
/// moved by `offset_bytes` towards the beginning.
at::Tensor tensor_on(c10::Storage storage, const at::Tensor& like, std::int64_t offset_bytes = 0);

/// The bytes that a tensor spans on `device`, beside each other as they were, with its geometry: unlike Tensor::to(),
/// which makes tensors with holes dense.
at::Tensor copy_bytes(const at::Tensor& tensor, c10::Device device);

} // namespace offload
