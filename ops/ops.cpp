#include <ATen/EmptyTensor.h>
#include <ATen/core/functional.h>
#include <ATen/core/ivalue_inl.h>
#include <ATen/core/stack.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/mm.h>
#include <torch/library.h>

#include <optional>

#include <ops/lease.h>

namespace offload {

const at::Tensor& LeasedWeight::whole() const {
  TORCH_CHECK(parts.size() == 1, "an operator wants a weight in one piece, and it was lent in ", parts.size());
  return parts.front().tensor;
}

ProductSize product_size(const at::Tensor& a, std::int64_t m) {
  const auto elements = static_cast<double>(a.numel());
  const auto columns = static_cast<double>(m);
  if (a.is_nested()) {
    return {2 * elements * columns, 0, 0};
  }
  const double rows = a.dim() == 0 || a.numel() == 0 ? 1 : elements / static_cast<double>(a.size(-1));
  return {2 * elements * columns, rows, (elements + rows * columns) * static_cast<double>(a.element_size())};
}

void lease_all(std::vector<at::Tensor>& tensors, const ProductSize& size) {
  Lender* lender = nullptr;
  std::vector<at::Tensor> placeholders;
  std::vector<at::Tensor*> places;
  for (at::Tensor& tensor : tensors) {
    if (const PlaceholderRecord* record = placeholder_record(tensor)) {
      TORCH_CHECK(!lender || lender == record->lender.get(), "one operator reads weights of two offload::Modules");
      lender = record->lender.get();
      placeholders.push_back(tensor);
      places.push_back(&tensor);
    }
  }
  if (!lender) {
    return;
  }
  const std::vector<LeasedWeight> leased = lender->lease(placeholders, size);
  for (std::size_t i = 0; i < places.size(); ++i) {
    *places[i] = leased[i].whole();
  }
}

namespace {

void delete_record(void* record) { delete static_cast<PlaceholderRecord*>(record); }
void end_lease(void* lease) { delete static_cast<std::shared_ptr<Lease>*>(lease); }

std::vector<at::Tensor> acquire(std::vector<at::Tensor> weights) {
  lease_all(weights, {});
  return weights;
}

std::optional<at::Tensor> acquire_optional(const std::optional<at::Tensor>& weight) {
  return weight && weight->defined() ? std::optional(acquire({*weight})[0]) : weight;
}

c10::List<std::optional<at::Tensor>> acquire_optionals(const c10::List<std::optional<at::Tensor>>& weights) {
  const std::vector<std::optional<at::Tensor>> given = weights.vec();
  std::vector<at::Tensor> tensors = c10::fmap(given, [](const auto& weight) { return weight.value_or(at::Tensor()); });
  lease_all(tensors, {});
  c10::List<std::optional<at::Tensor>> acquired;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    acquired.push_back(given[i] ? std::optional(tensors[i]) : std::nullopt);
  }
  return acquired;
}

at::Tensor rows(const at::Tensor& weight, const at::Tensor& indices) {
  const PlaceholderRecord* record = placeholder_record(weight);
  return record ? record->lender->lease_rows(weight, static_cast<std::uint64_t>(indices.numel())) : weight;
}

at::Tensor linear(const at::Tensor& input, const at::Tensor& weight, const std::optional<at::Tensor>& bias) {
  std::vector<at::Tensor> tensors = {input, weight, bias.value_or(at::Tensor())};
  lease_all(tensors, product_size(input, weight.dim() == 2 ? weight.size(0) : 1));
  return at::linear(tensors[0], tensors[1], tensors[2].defined() ? std::optional(tensors[2]) : std::nullopt);
}

/// matmul, mm and bmm.
template <at::Tensor (*Multiply)(const at::Tensor&, const at::Tensor&)>
at::Tensor leased_product(const at::Tensor& a, const at::Tensor& b) {
  std::vector<at::Tensor> tensors = {a, b};
  lease_all(tensors, product_size(a, b.dim() > 1 ? b.size(-1) : 1));
  return Multiply(tensors[0], tensors[1]);
}

at::Tensor addmm(const at::Tensor& self, const at::Tensor& mat1, const at::Tensor& mat2, const at::Scalar& beta,
                 const at::Scalar& alpha) {
  std::vector<at::Tensor> tensors = {self, mat1, mat2};
  lease_all(tensors, product_size(mat1, mat2.dim() > 1 ? mat2.size(-1) : 1));
  return at::addmm(tensors[0], tensors[1], tensors[2], beta, alpha);
}

/// Operators that return a view of a lease, or the lease itself: what goes on is a copy of the bytes that the view
/// spans, and the lease ends with the operator that needed it.
at::Tensor own(const at::Tensor& tensor) {
  const bool is_leased =
      tensor.defined() && tensor.has_storage() && tensor.storage().data_ptr().get_deleter() == &end_lease;
  return is_leased ? copy_bytes(tensor, tensor.device()) : tensor;
}

std::vector<at::Tensor> own_all(const std::vector<at::Tensor>& tensors) { return c10::fmap(tensors, own); }

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
  auto* context = new PlaceholderRecord{std::move(lender), weight};
  c10::Storage storage(c10::make_intrusive<c10::StorageImpl>(c10::StorageImpl::use_byte_size_t(), bytes,
                                                             at::DataPtr(nullptr, context, &delete_record, device),
                                                             /*allocator=*/nullptr, /*resizable=*/false));
  storage.unsafeGetStorageImpl()->release_data_and_set_meta_custom_data_ptr_error_msg_(
      "weight " + name +
      " is there only in calls of its offload::Module: call that, and not the module that wrap() took");
  return storage;
}

const PlaceholderRecord* placeholder_record(const at::Tensor& tensor) {
  if (!tensor.defined() || !tensor.has_storage()) {
    return nullptr;
  }
  return tensor.storage().unsafeGetStorageImpl()->_mutable_data_ptr_no_checks().cast_context<PlaceholderRecord>(
      &delete_record);
}

c10::Storage make_leased(std::shared_ptr<Lease> lease, void* data, std::uint64_t bytes, c10::Device device) {
  auto shared = std::make_unique<std::shared_ptr<Lease>>(std::move(lease));
  return {c10::Storage::use_byte_size_t(), bytes, at::DataPtr(data, shared.release(), &end_lease, device)};
}

std::pair<std::uint64_t, std::uint64_t> byte_range(const at::Tensor& tensor) {
  const std::uint64_t begin = tensor.storage_offset() * tensor.element_size();
  return {begin, tensor.numel() == 0
                     ? begin
                     : at::detail::computeStorageNbytes(tensor.sizes(), tensor.strides(), tensor.element_size(),
                                                        tensor.storage_offset())};
}

at::Tensor tensor_on(c10::Storage storage, const at::Tensor& like, std::int64_t offset_bytes) {
  const std::int64_t item = static_cast<std::int64_t>(like.element_size());
  const c10::DispatchKeySet keys(storage.device().is_cuda() ? c10::DispatchKey::CUDA : c10::DispatchKey::CPU);
  at::Tensor tensor = at::detail::make_tensor<c10::TensorImpl>(std::move(storage), keys, like.dtype());
  tensor.unsafeGetTensorImpl()->set_storage_offset(like.storage_offset() - offset_bytes / item);
  tensor.unsafeGetTensorImpl()->set_sizes_and_strides(like.sizes(), like.strides());
  // at::matmul folds otherwise, and rounds otherwise, for a weight that requires gradients; without gradients, too.
  tensor.unsafeGetTensorImpl()->set_requires_grad(like.requires_grad());
  tensor._set_conj(like.is_conj());
  tensor._set_neg(like.is_neg());
  return tensor;
}

at::Tensor copy_bytes(const at::Tensor& tensor, c10::Device device) {
  const auto [begin, end] = byte_range(tensor);
  const std::uint64_t from = begin / kAlignment * kAlignment;
  const at::Tensor bytes =
      at::empty({0}, at::TensorOptions(at::kByte).device(tensor.device()))
          .set_(tensor.storage(), static_cast<std::int64_t>(from), {static_cast<std::int64_t>(end - from)}, {1});
  return tensor_on(bytes.to(device, /*non_blocking=*/false, /*copy=*/true).storage(), tensor,
                   static_cast<std::int64_t>(from));
}

} // namespace offload

// All of them change what the streamer holds, so no pass may merge, move or drop them: conservative alias analysis.
TORCH_LIBRARY(offload, m) {
  const auto define = [&m](const char* schema, auto function) {
    m.def(torch::schema(schema, c10::AliasAnalysisKind::CONSERVATIVE), function);
  };
  // Products of matrices, as their namesakes in aten, whose inputs may be placeholders.
  define("linear(Tensor input, Tensor weight, Tensor? bias=None) -> Tensor", TORCH_FN(offload::linear));
  define("matmul(Tensor self, Tensor other) -> Tensor", TORCH_FN(offload::leased_product<at::matmul>));
  define("mm(Tensor self, Tensor mat2) -> Tensor", TORCH_FN(offload::leased_product<at::mm>));
  define("bmm(Tensor self, Tensor mat2) -> Tensor", TORCH_FN(offload::leased_product<at::bmm>));
  define("addmm(Tensor self, Tensor mat1, Tensor mat2, *, Scalar beta=1, Scalar alpha=1) -> Tensor",
         TORCH_FN(offload::addmm));
  // For other readers. Tensors that are no placeholders are returned as they are.
  define("acquire(Tensor[] weights) -> Tensor[]", TORCH_FN(offload::acquire));
  define("acquire_optional(Tensor? weight) -> Tensor?", TORCH_FN(offload::acquire_optional));
  define("acquire_optionals(Tensor?[] weights) -> Tensor?[]", TORCH_FN(offload::acquire_optionals));
  // After readers that may return what they were given.
  define("own(Tensor tensor) -> Tensor", TORCH_FN(offload::own));
  define("own_all(Tensor[] tensors) -> Tensor[]", TORCH_FN(offload::own_all));
  // For readers that look up rows of `weight`, one for each of `indices`.
  define("rows(Tensor weight, Tensor indices) -> Tensor", TORCH_FN(offload::rows));
  m.def(torch::schema("completed(t value) -> Future(t)", c10::AliasAnalysisKind::CONSERVATIVE,
                      /*allow_typevars=*/true),
        torch::CppFunction::makeFromBoxedFunction<&offload::completed>());
}
