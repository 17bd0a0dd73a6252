#include <offload/graph/operators.h>

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/function_schema.h>
#include <torch/csrc/jit/ir/constants.h>
#include <torch/csrc/jit/runtime/operator.h>

#include <algorithm>
#include <sstream>
#include <string>
#include <unordered_set>

namespace offload {

using torch::jit::Node;
namespace prim = torch::jit::prim;
namespace aten = torch::jit::aten;

namespace {

using Symbols = std::unordered_set<c10::Symbol>;

/// `names` are separated by white space.
Symbols symbols(const char* names) {
  Symbols result;
  std::istringstream words(names);
  for (std::string name; words >> name;) {
    result.insert(c10::Symbol::fromQualString(name));
  }
  return result;
}

// Lists that more than one load may want are made before main(): a fork finds nobody making them.
const Symbols kWriteInSilence = symbols(R"(
    aten::batch_norm aten::native_batch_norm aten::_native_batch_norm_legit aten::instance_norm
    aten::cudnn_batch_norm aten::_batch_norm_impl_index aten::sync_batch_norm)");
const Symbols kMetadata = symbols(R"(
    aten::size aten::dim aten::numel aten::stride aten::storage_offset aten::len aten::__is__ aten::__isnot__
    aten::is_floating_point aten::is_complex aten::is_contiguous aten::sym_size aten::element_size
    aten::get_device aten::has_torch_function aten::is_autocast_enabled
    prim::device prim::dtype prim::layout prim::requires_grad prim::is_cuda prim::is_cpu prim::is_nested
    prim::is_sparse prim::is_quantized prim::is_meta prim::is_mkldnn prim::is_xpu prim::is_mps
    prim::itemsize prim::ndim prim::nbytes prim::isinstance prim::type)");
const Symbols kPassOn = symbols(R"(
    prim::ListConstruct prim::TupleConstruct prim::DictConstruct prim::ListUnpack prim::TupleUnpack
    prim::TupleIndex prim::TupleSlice prim::ConstantChunk prim::unchecked_cast prim::data prim::Uninitialized
    aten::__getitem__ aten::list aten::t aten::numpy_T aten::transpose aten::permute aten::view aten::slice
    aten::select aten::narrow aten::unsqueeze aten::squeeze aten::expand aten::chunk aten::split
    aten::split_with_sizes aten::unbind aten::detach aten::alias aten::swapaxes aten::movedim)");
const Symbols kCompute = symbols(R"(
    aten::linear aten::matmul aten::bilinear aten::tensordot aten::inner aten::outer aten::kron
    aten::conv1d aten::conv2d aten::conv3d aten::conv_transpose1d aten::conv_transpose2d
    aten::conv_transpose3d aten::_convolution aten::_convolution_mode
    aten::batch_norm aten::layer_norm aten::group_norm aten::instance_norm aten::rms_norm
    aten::lstm aten::lstm_cell aten::gru aten::gru_cell aten::rnn_tanh aten::rnn_relu aten::rnn_tanh_cell
    aten::rnn_relu_cell aten::embedding_bag aten::scaled_dot_product_attention aten::cosine_similarity
    aten::multiply aten::divide aten::subtract aten::true_divide aten::softmax aten::log_softmax aten::prelu
    aten::max_pool1d aten::max_pool2d aten::max_pool3d aten::adaptive_avg_pool1d aten::adaptive_avg_pool2d
    aten::where aten::std aten::var aten::sum aten::norm aten::max aten::min
    aten::concat aten::concatenate aten::stack aten::hstack aten::vstack aten::dstack aten::tile)");
const Symbols kMayReturnInput = symbols(R"(
    aten::_autocast_to_reduced_precision aten::_autocast_to_full_precision aten::cpu aten::cuda
    aten::lift_fresh aten::unsafe_split aten::unsafe_split_with_sizes)");
const Symbols kCopyContainers = symbols(R"(
    aten::list aten::copy aten::slice aten::add aten::mul aten::items aten::values aten::keys aten::sorted
    aten::dict)");
const Symbols kPassObjectsOn = symbols(R"(
    prim::GetAttr prim::SetAttr prim::If prim::Loop prim::ModuleContainerIndex prim::RaiseException
    prim::CreateObject)");

/// Of an optional: the kind of what it may hold.
c10::TypeKind kind_of(const c10::TypePtr& type) {
  const auto optional = type->cast<c10::OptionalType>();
  return (optional ? optional->getElementType() : type)->kind();
}

/// Running statistics are written in training mode without a word in the schema.
bool writes_in_silence(const Node* node, std::size_t input) {
  if ((input != 3 && input != 4) || kWriteInSilence.count(node->kind()) == 0) {
    return false;
  }
  const auto training = node->inputs().size() > 5 ? torch::jit::toIValue(node->input(5)) : std::nullopt;
  return !training || !training->isBool() || training->toBool();
}

/// Null where the schema has no such argument.
const c10::Argument* argument_of(const Node* node, std::size_t input) {
  const c10::FunctionSchema* schema = node->maybeSchema();
  return schema && input < schema->arguments().size() ? &schema->arguments()[input] : nullptr;
}

/// Null where the schema does not say that outputs share memory with the input.
const c10::AliasInfo* alias_info_of(const Node* node, std::size_t input) {
  const c10::Argument* argument = argument_of(node, input);
  return argument ? argument->alias_info() : nullptr;
}

} // namespace

bool is_device(const c10::TypePtr& type) { return kind_of(type) == c10::TypeKind::DeviceObjType; }

bool is_container(const c10::TypePtr& type) { return kind_of(type) != c10::TypeKind::TensorType; }

bool can_lease(const c10::TypePtr& type) {
  const auto list = type->cast<c10::ListType>();
  return !is_container(list ? list->getElementType() : type);
}

bool holds_containers(const c10::TypePtr& type) {
  const auto contained = type->containedTypes();
  return std::any_of(contained.begin(), contained.end(), [](const c10::TypePtr& element) {
    return element->kind() != c10::TypeKind::TensorType && !element->containedTypes().empty();
  });
}

bool is_one_of(const Node* node, std::initializer_list<std::string_view> names) {
  return std::find(names.begin(), names.end(), node->kind().toQualString()) != names.end();
}

bool has_kernel(const Node* node, std::initializer_list<c10::DispatchKey> keys) {
  const auto* op = node->maybeOperator();
  if (!op || !op->isC10Op()) {
    return false;
  }
  const auto handle = c10::Dispatcher::singleton().findOp(op->schema().operator_name());
  return handle && std::any_of(keys.begin(), keys.end(),
                               [&](c10::DispatchKey key) { return handle->hasKernelForDispatchKey(key); });
}

bool is_metadata(const Node* node) { return kMetadata.count(node->kind()) > 0; }

bool passes_on(const Node* node) { return kPassOn.count(node->kind()) > 0; }

bool may_return_input(const Node* node) {
  // Of what is composed of other operators nothing says whether it returns a view of what it was given.
  return kMayReturnInput.count(node->kind()) > 0 ||
         (has_kernel(node, {c10::DispatchKey::CompositeImplicitAutograd}) && kCompute.count(node->kind()) == 0);
}

bool may_alias_output(const Node* node, std::size_t input) {
  return alias_info_of(node, input) || may_return_input(node) || moves_input(node, input);
}

bool writes_input(const Node* node, std::size_t input) {
  const c10::AliasInfo* info = alias_info_of(node, input);
  return (info && info->isWrite()) || writes_in_silence(node, input);
}

bool writes_elements(const Node* node, std::size_t input) {
  const c10::AliasInfo* info = alias_info_of(node, input);
  return info && std::any_of(info->containedTypes().begin(), info->containedTypes().end(),
                             [](const c10::AliasInfo& element) { return element.isWrite(); });
}

bool moves_input(const Node* node, std::size_t input) {
  const c10::Argument* argument = argument_of(node, input);
  return argument && argument->type()->hasFreeVariables();
}

bool is_construct(const Node* node) {
  return node->kind() == prim::ListConstruct || node->kind() == prim::TupleConstruct ||
         node->kind() == prim::DictConstruct;
}

bool copies_container(const Node* node) { return kCopyContainers.count(node->kind()) > 0; }

torch::jit::Value* indices_of_lookup(Node* node) {
  if (node->kind() == aten::embedding || node->kind() == aten::embedding_bag) {
    return node->input(1);
  }
  if (node->kind() == aten::index_select) {
    const auto dim = torch::jit::toIValue(node->input(1));
    return dim && dim->isInt() && dim->toInt() == 0 ? node->input(2) : nullptr;
  }
  if (node->kind() == aten::index) { // table[indices]
    Node* list = node->input(1)->node();
    const bool one = list->kind() == prim::ListConstruct && list->inputs().size() == 1 &&
                     list->input(0)->type()->kind() == c10::TypeKind::TensorType;
    return one ? list->input(0) : nullptr;
  }
  return nullptr;
}

bool passes_objects_on(const Node* node) {
  return kPassObjectsOn.count(node->kind()) > 0 || passes_on(node) || is_metadata(node);
}

} // namespace offload
