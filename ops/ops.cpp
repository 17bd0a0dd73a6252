#include <ATen/core/ivalue_inl.h>
#include <ATen/core/op_registration/adaption.h>
#include <ATen/core/stack.h>
#include <ATen/ops/linear.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/library.h>

#include <optional>

#include <ops/lease.h>

namespace offload {

namespace {

void delete_record(void* record) { delete static_cast<PlaceholderRecord*>(record); }

/// Each placeholder in `tensors` is replaced by a lease; other tensors stay.
void lease_all(std::vector<at::Tensor>& tensors, double flops) {
  Lender* lender = nullptr;
  std::vector<at::Tensor> placeholders;
  std::vector<std::size_t> positions;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    if (const PlaceholderRecord* record = placeholder_record(tensors[i])) {
      TORCH_CHECK(!lender || lender == record->lender.get(), "one operator reads weights of two offload::Modules");
      lender = record->lender.get();
      placeholders.push_back(tensors[i]);
      positions.push_back(i);
    }
  }
  if (!lender) {
    return;
  }
  std::vector<at::Tensor> leased = lender->lease(placeholders, flops);
  for (std::size_t i = 0; i < positions.size(); ++i) {
    tensors[positions[i]] = std::move(leased[i]);
  }
}

std::vector<at::Tensor> acquire(std::vector<at::Tensor> weights) {
  lease_all(weights, 0);
  return weights;
}

std::optional<at::Tensor> acquire_optional(const std::optional<at::Tensor>& weight) {
  return weight && weight->defined() ? std::optional(acquire({*weight})[0]) : weight;
}

at::Tensor rows(const at::Tensor& weight) {
  const PlaceholderRecord* record = placeholder_record(weight);
  return record ? record->lender->lease_rows(weight) : weight;
}

at::Tensor linear(const at::Tensor& input, const at::Tensor& weight, const std::optional<at::Tensor>& bias) {
  std::vector<at::Tensor> weights = {weight};
  if (bias && bias->defined()) {
    weights.push_back(*bias);
  }
  lease_all(weights, 2.0 * static_cast<double>(input.numel()) * (weight.dim() == 2 ? weight.size(0) : 1));
  return at::linear(input, weights[0], weights.size() > 1 ? std::optional(weights[1]) : std::nullopt);
}

/// What was forked and has run already.
void completed(const c10::OperatorHandle&, torch::jit::Stack* stack) {
  c10::IValue value = torch::jit::pop(*stack);
  auto future = c10::make_intrusive<c10::ivalue::Future>(value.type());
  future->markCompleted(std::move(value));
  torch::jit::push(*stack, std::move(future));
}

} // namespace

c10::Storage make_placeholder(std::shared_ptr<Lender> lender, std::uint32_t weight, const std::string& name,
                              std::uint64_t bytes, c10::Device device) {
  auto record = std::make_unique<PlaceholderRecord>(PlaceholderRecord{std::move(lender), weight});
  void* context = record.release();
  c10::Storage storage(c10::make_intrusive<c10::StorageImpl>(c10::StorageImpl::use_byte_size_t(), bytes,
                                                             at::DataPtr(nullptr, context, &delete_record, device),
                                                             /*allocator=*/nullptr, /*resizable=*/false));
  storage.unsafeGetStorageImpl()->release_data_and_set_meta_custom_data_ptr_error_msg_("weight " + name +
                                                                                       " read outside a lease");
  return storage;
}

const PlaceholderRecord* placeholder_record(const at::Tensor& tensor) {
  if (!tensor.defined() || !tensor.has_storage()) {
    return nullptr;
  }
  return tensor.storage().unsafeGetStorageImpl()->_mutable_data_ptr_no_checks().cast_context<PlaceholderRecord>(
      &delete_record);
}

at::Tensor tensor_on(c10::Storage storage, const at::Tensor& like, std::int64_t offset_bytes) {
  const std::int64_t item = static_cast<std::int64_t>(like.element_size());
  const c10::DispatchKeySet keys(storage.device().is_cuda() ? c10::DispatchKey::CUDA : c10::DispatchKey::CPU);
  at::Tensor tensor = at::detail::make_tensor<c10::TensorImpl>(std::move(storage), keys, like.dtype());
  tensor.unsafeGetTensorImpl()->set_storage_offset(like.storage_offset() - offset_bytes / item);
  tensor.unsafeGetTensorImpl()->set_sizes_and_strides(like.sizes(), like.strides());
  // at::matmul folds otherwise, and rounds otherwise, for a weight that requires gradients; without gradients, too.
  tensor.unsafeGetTensorImpl()->set_requires_grad(like.requires_grad());
  return tensor;
}

} // namespace offload

// All of them change what the streamer holds, so no pass may merge, move or drop them: conservative alias analysis.
TORCH_LIBRARY(offload, m) {
  // x [*, in_features], weight [out_features, in_features], bias [out_features] -> [*, out_features]
  m.def(torch::schema("linear(Tensor input, Tensor weight, Tensor? bias=None) -> Tensor",
                      c10::AliasAnalysisKind::CONSERVATIVE),
        torch::CppFunction::makeFromUnboxedFunction(&offload::linear));
  // Tensors that are no placeholders are returned as they are.
  m.def(torch::schema("acquire(Tensor[] weights) -> Tensor[]", c10::AliasAnalysisKind::CONSERVATIVE),
        torch::CppFunction::makeFromUnboxedFunction(&offload::acquire));
  m.def(torch::schema("acquire_optional(Tensor? weight) -> Tensor?", c10::AliasAnalysisKind::CONSERVATIVE),
        torch::CppFunction::makeFromUnboxedFunction(&offload::acquire_optional));
  m.def(torch::schema("completed(t value) -> Future(t)", c10::AliasAnalysisKind::CONSERVATIVE,
                      /*allow_typevars=*/true),
        torch::CppFunction::makeFromBoxedFunction<&offload::completed>());
  // For readers that look up rows.
  m.def(torch::schema("rows(Tensor weight) -> Tensor", c10::AliasAnalysisKind::CONSERVATIVE),
        torch::CppFunction::makeFromUnboxedFunction(&offload::rows));
}
