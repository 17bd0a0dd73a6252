#include <offload/graph/operators.h>

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/function_schema.h>
#include <torch/csrc/jit/ir/constants.h>
#include <torch/csrc/jit/runtime/operator.h>

#include <algorithm>
#include <unordered_set>

namespace offload {

using torch::jit::Node;
namespace prim = torch::jit::prim;
namespace aten = torch::jit::aten;

namespace {

using Symbols = std::unordered_set<c10::Symbol>;

Symbols symbols(std::initializer_list<const char*> names) {
  Symbols result;
  for (const char* name : names) {
    result.insert(c10::Symbol::fromQualString(name));
  }
  return result;
}

// Lists that more than one load may want are made before main(): a fork finds nobody making them.
const Symbols kWriteInSilence =
    symbols({"aten::batch_norm", "aten::native_batch_norm", "aten::_native_batch_norm_legit", "aten::instance_norm",
             "aten::cudnn_batch_norm", "aten::_batch_norm_impl_index", "aten::sync_batch_norm"});
const Symbols kMetadata = symbols({"aten::size",
                                   "aten::dim",
                                   "aten::numel",
                                   "aten::stride",
                                   "aten::storage_offset",
                                   "aten::len",
                                   "aten::__is__",
                                   "aten::__isnot__",
                                   "aten::is_floating_point",
                                   "aten::is_complex",
                                   "aten::is_contiguous",
                                   "aten::sym_size",
                                   "aten::element_size",
                                   "aten::get_device",
                                   "prim::device",
                                   "prim::dtype",
                                   "prim::layout",
                                   "prim::requires_grad",
                                   "prim::is_cuda",
                                   "prim::is_cpu",
                                   "prim::is_nested",
                                   "prim::is_sparse",
                                   "prim::is_quantized",
                                   "prim::is_meta",
                                   "prim::is_mkldnn",
                                   "prim::is_xpu",
                                   "prim::is_mps",
                                   "prim::itemsize",
                                   "prim::ndim",
                                   "prim::nbytes",
                                   "prim::isinstance",
                                   "aten::has_torch_function",
                                   "prim::type",
                                   "aten::is_autocast_enabled"});
const Symbols kPassOn = symbols({"prim::ListConstruct",
                                 "prim::TupleConstruct",
                                 "prim::DictConstruct",
                                 "prim::ListUnpack",
                                 "prim::TupleUnpack",
                                 "prim::TupleIndex",
                                 "prim::TupleSlice",
                                 "aten::__getitem__",
                                 "prim::unchecked_cast",
                                 "aten::list",
                                 "prim::ConstantChunk",
                                 "aten::t",
                                 "aten::numpy_T",
                                 "aten::transpose",
                                 "aten::permute",
                                 "aten::view",
                                 "aten::slice",
                                 "aten::select",
                                 "aten::narrow",
                                 "aten::unsqueeze",
                                 "aten::squeeze",
                                 "aten::expand",
                                 "aten::chunk",
                                 "aten::split",
                                 "aten::split_with_sizes",
                                 "aten::unbind",
                                 "aten::detach",
                                 "aten::alias",
                                 "aten::swapaxes",
                                 "aten::movedim",
                                 "prim::data",
                                 "prim::Uninitialized"});
const Symbols kCompute = symbols({"aten::linear",
                                  "aten::matmul",
                                  "aten::conv1d",
                                  "aten::conv2d",
                                  "aten::conv3d",
                                  "aten::conv_transpose1d",
                                  "aten::conv_transpose2d",
                                  "aten::conv_transpose3d",
                                  "aten::_convolution",
                                  "aten::_convolution_mode",
                                  "aten::batch_norm",
                                  "aten::layer_norm",
                                  "aten::group_norm",
                                  "aten::instance_norm",
                                  "aten::rms_norm",
                                  "aten::embedding_bag",
                                  "aten::lstm",
                                  "aten::lstm_cell",
                                  "aten::gru",
                                  "aten::gru_cell",
                                  "aten::rnn_tanh",
                                  "aten::rnn_relu",
                                  "aten::rnn_tanh_cell",
                                  "aten::rnn_relu_cell",
                                  "aten::bilinear",
                                  "aten::tensordot",
                                  "aten::inner",
                                  "aten::outer",
                                  "aten::kron",
                                  "aten::multiply",
                                  "aten::divide",
                                  "aten::subtract",
                                  "aten::true_divide",
                                  "aten::softmax",
                                  "aten::log_softmax",
                                  "aten::cosine_similarity",
                                  "aten::scaled_dot_product_attention",
                                  "aten::prelu",
                                  "aten::max_pool1d",
                                  "aten::max_pool2d",
                                  "aten::max_pool3d",
                                  "aten::adaptive_avg_pool1d",
                                  "aten::adaptive_avg_pool2d",
                                  "aten::where",
                                  "aten::std",
                                  "aten::var",
                                  "aten::sum",
                                  "aten::norm",
                                  "aten::max",
                                  "aten::min",
                                  "aten::concat",
                                  "aten::concatenate",
                                  "aten::stack",
                                  "aten::hstack",
                                  "aten::vstack",
                                  "aten::dstack",
                                  "aten::tile"});
const Symbols kMayReturnInput =
    symbols({"aten::_autocast_to_reduced_precision", "aten::_autocast_to_full_precision", "aten::cpu", "aten::cuda",
             "aten::lift_fresh", "aten::unsafe_split", "aten::unsafe_split_with_sizes"});
const Symbols kCopyContainers = symbols({"aten::list", "aten::copy", "aten::slice", "aten::add", "aten::mul",
                                         "aten::items", "aten::values", "aten::keys", "aten::sorted", "aten::dict"});
const Symbols kPassObjectsOn = symbols({"prim::GetAttr", "prim::SetAttr", "prim::If", "prim::Loop",
                                        "prim::ModuleContainerIndex", "prim::RaiseException", "prim::CreateObject"});

/// Running statistics are written in training mode without a word in the schema.
bool writes_in_silence(const Node* node, std::size_t input) {
  if ((input != 3 && input != 4) || kWriteInSilence.count(node->kind()) == 0) {
    return false;
  }
  const auto training = node->inputs().size() > 5 ? torch::jit::toIValue(node->input(5)) : std::nullopt;
  return !training || !training->isBool() || training->toBool();
}

} // namespace

bool is_metadata(const Node* node) { return kMetadata.count(node->kind()) > 0; }

bool passes_on(const Node* node) { return kPassOn.count(node->kind()) > 0; }

namespace {

/// Composed of other operators, so that nothing says whether it returns a view of what it was given.
bool is_composite(const Node* node) {
  const auto* op = node->maybeOperator();
  if (!op || !op->isC10Op()) {
    return false;
  }
  const auto handle = c10::Dispatcher::singleton().findOp(op->schema().operator_name());
  return handle && handle->hasKernelForDispatchKey(c10::DispatchKey::CompositeImplicitAutograd);
}

/// Composed, and known to compute something new.
bool computes(const Node* node) { return kCompute.count(node->kind()) > 0; }

} // namespace

bool may_return_input(const Node* node) {
  return kMayReturnInput.count(node->kind()) > 0 || (is_composite(node) && !computes(node));
}

bool may_alias_output(const Node* node, std::size_t input) {
  const c10::FunctionSchema* schema = node->maybeSchema();
  const bool annotated = schema && input < schema->arguments().size() && schema->arguments()[input].alias_info();
  return annotated || may_return_input(node) || moves_input(node, input);
}

bool writes_input(const Node* node, std::size_t input) {
  const c10::FunctionSchema* schema = node->maybeSchema();
  const bool annotated = schema && input < schema->arguments().size() && schema->arguments()[input].alias_info() &&
                         schema->arguments()[input].alias_info()->isWrite();
  return annotated || writes_in_silence(node, input);
}

bool writes_elements(const Node* node, std::size_t input) {
  const c10::FunctionSchema* schema = node->maybeSchema();
  const bool annotated = schema && input < schema->arguments().size() && schema->arguments()[input].alias_info();
  if (!annotated) {
    return false;
  }
  const auto& elements = schema->arguments()[input].alias_info()->containedTypes();
  return std::any_of(elements.begin(), elements.end(), [](const c10::AliasInfo& info) { return info.isWrite(); });
}

bool moves_input(const Node* node, std::size_t input) {
  const c10::FunctionSchema* schema = node->maybeSchema();
  return schema && input < schema->arguments().size() && schema->arguments()[input].type()->hasFreeVariables();
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
    const Node* list = node->input(1)->node();
    const bool one = list->kind() == prim::ListConstruct && list->inputs().size() == 1 &&
                     list->input(0)->type()->kind() == c10::TypeKind::TensorType;
    return one ? node->input(1)->node()->input(0) : nullptr;
  }
  return nullptr;
}

bool passes_objects_on(const Node* node) {
  return kPassObjectsOn.count(node->kind()) > 0 || passes_on(node) || is_metadata(node);
}

} // namespace offload
