#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/ArrayRef.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace offload {

/// Lends the bytes of weights to operators: what the operators need to know of whoever owns them.
class Lender {
 public:
  virtual ~Lender() = default;

  /// A tensor on the device for each placeholder of this lender, all or none, with the sizes, strides and dtype of the
  /// placeholder. The storage of each owns its lease, which ends with its last reference. `flops` is what the reader
  /// will compute with them, 0 when unknown. On the thread of a call only; throws Error otherwise, and when the bytes
  /// cannot come.
  virtual std::vector<at::Tensor> lease(c10::ArrayRef<at::Tensor> placeholders, double flops) = 0;

  /// The same for a reader that looks up rows: the tensor may lie in host memory that the device reads by itself.
  virtual at::Tensor lease_rows(const at::Tensor& placeholder) = 0;
};

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

/// A tensor with geometry, dtype and requires_grad of `like` on `storage`, its offset moved by `offset_bytes` towards
/// the beginning.
at::Tensor tensor_on(c10::Storage storage, const at::Tensor& like, std::int64_t offset_bytes = 0);

} // namespace offload
