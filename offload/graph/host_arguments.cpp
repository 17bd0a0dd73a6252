#include <offload/graph/host_arguments.h>

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/jit/ir/constants.h>
#include <torch/csrc/jit/runtime/operator.h>

#include <algorithm>
#include <string_view>
#include <vector>

#include <offload/graph/operators.h>

namespace offload {

using torch::jit::Node;
namespace aten = torch::jit::aten;
namespace prim = torch::jit::prim;

namespace {

struct HostOperator {
  std::string_view name; ///< with its overload, where others of the name take no tensor there
  std::vector<std::size_t> inputs;
  std::vector<std::size_t> outputs;
};

const std::vector<HostOperator> kOperators = {
    {"aten::_pack_padded_sequence", {1}, {1}},
    {"aten::_pad_packed_sequence", {1}, {1}},
    {"aten::lstm.data", {1}, {}},
    {"aten::gru.data", {1}, {}},
    {"aten::rnn_tanh.data", {1}, {}},
    {"aten::rnn_relu.data", {1}, {}},
    {"aten::tensor_split.tensor_indices_or_sections", {1}, {}},
    {"aten::_nested_view_from_buffer", {1, 2, 3}, {}},
    {"aten::_nested_from_padded", {1}, {}},
    {"aten::cpu", {}, {0}},
    {"aten::_shape_as_tensor", {}, {0}},
    {"aten::_nested_tensor_size", {}, {0}},
};

/// Lengths and sizes that the operator reads on the host, and those that it gives.
const HostOperator* host_operator(const Node* node) {
  const c10::FunctionSchema* schema = node->maybeSchema();
  if (!schema) {
    return nullptr;
  }
  const std::string name = schema->name() + (schema->overload_name().empty() ? "" : "." + schema->overload_name());
  const auto found =
      std::find_if(kOperators.begin(), kOperators.end(), [&](const HostOperator& known) { return known.name == name; });
  return found == kOperators.end() ? nullptr : &*found;
}

bool has(const std::vector<std::size_t>& positions, std::size_t position) {
  return std::find(positions.begin(), positions.end(), position) != positions.end();
}

bool has_kernels_on_host_only(const Node* node, c10::Device device) {
  using c10::DispatchKey;
  const auto* op = node->maybeOperator();
  if (!device.is_cuda() || !op || !op->isC10Op()) {
    return false;
  }
  const auto handle = c10::Dispatcher::singleton().findOp(op->schema().operator_name());
  const auto has_kernel = [&](DispatchKey key) { return handle->hasKernelForDispatchKey(key); };
  return handle && (has_kernel(DispatchKey::CPU) || has_kernel(DispatchKey::QuantizedCPU)) &&
         !has_kernel(DispatchKey::CUDA) && !has_kernel(DispatchKey::QuantizedCUDA) &&
         !has_kernel(DispatchKey::CompositeImplicitAutograd) && !has_kernel(DispatchKey::CompositeExplicitAutograd) &&
         !has_kernel(DispatchKey::CompositeExplicitAutogradNonFunctional);
}

bool is_one_of(const Node* node, std::initializer_list<std::string_view> names) {
  const std::string_view name = node->kind().toQualString();
  return std::find(names.begin(), names.end(), name) != names.end();
}

} // namespace

bool looks_up_by_index(const Node* node) {
  return is_one_of(node, {"aten::index", "aten::index_put", "aten::index_put_"});
}

Wanted wanted_of(const Node* node, std::size_t input, c10::Device device) {
  const HostOperator* known = host_operator(node);
  if (known) {
    return has(known->inputs, input) ? Wanted::on_host : Wanted::anywhere;
  }
  const bool first_decides = looks_up_by_index(node) || is_one_of(node, {"aten::copy_"});
  const bool second_decides = is_one_of(node, {"aten::to", "aten::type_as"});
  if ((first_decides && input == 1) || (second_decides && input == 0 && node->inputs().size() > 1 &&
                                        node->input(1)->type()->kind() == c10::TypeKind::TensorType)) {
    return Wanted::apart;
  }
  return has_kernels_on_host_only(node, device) ? Wanted::kernels_host : Wanted::anywhere;
}

bool gives_on_host(const Node* node, std::size_t output) {
  const HostOperator* known = host_operator(node);
  return known && has(known->outputs, output);
}

bool gives_scalar(const Node* node) {
  const c10::FunctionSchema* schema = node->maybeSchema();
  if (is_one_of(node, {"prim::NumToTensor", "aten::scalar_tensor"})) {
    return true;
  }
  if (!schema) {
    return false;
  }
  if (is_one_of(node, {"aten::tensor"})) {
    return node->input(0)->type()->kind() != c10::TypeKind::ListType;
  }
  if (is_one_of(node, {"aten::zeros", "aten::ones", "aten::full", "aten::empty"})) {
    const auto sizes = torch::jit::toIValue(node->input(0));
    return (sizes && sizes->isIntList() && sizes->toIntVector().empty()) ||
           (node->input(0)->node()->kind() == prim::ListConstruct && node->input(0)->node()->inputs().empty());
  }
  const auto& arguments = schema->arguments();
  return is_one_of(node,
                   {"aten::max", "aten::min", "aten::sum", "aten::mean", "aten::prod", "aten::any", "aten::all"}) &&
         std::none_of(arguments.begin(), arguments.end(),
                      [](const c10::Argument& argument) { return argument.name() == "dim"; }) &&
         std::count_if(arguments.begin(), arguments.end(), [](const c10::Argument& argument) {
           return argument.type()->kind() == c10::TypeKind::TensorType;
         }) == 1;
}

std::optional<std::size_t> device_input(const Node* node) {
  const c10::FunctionSchema* schema = node->maybeSchema();
  for (std::size_t i = 0; schema && i < schema->arguments().size(); ++i) {
    const c10::TypePtr& type = schema->arguments()[i].type();
    const auto optional = type->cast<c10::OptionalType>();
    if ((optional ? optional->getElementType() : type)->kind() == c10::TypeKind::DeviceObjType) {
      return i;
    }
  }
  return std::nullopt;
}

bool is_factory(const Node* node) {
  return is_one_of(node, {"aten::zeros", "aten::ones", "aten::full", "aten::empty", "aten::arange", "aten::linspace",
                          "aten::logspace", "aten::eye", "aten::tril_indices", "aten::triu_indices", "aten::tensor"});
}

} // namespace offload
