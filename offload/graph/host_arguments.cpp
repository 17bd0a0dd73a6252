#include <offload/graph/host_arguments.h>

#include <ATen/core/function_schema.h>
#include <torch/csrc/jit/ir/constants.h>

#include <algorithm>
#include <map>
#include <set>
#include <string>

#include <offload/graph/operators.h>

namespace offload {

using torch::jit::Node;
namespace prim = torch::jit::prim;

namespace {

struct HostOperator {
  std::set<std::size_t> inputs;
  std::set<std::size_t> outputs;
};

/// Lengths and sizes that operators read on the host, and those that they give. A name is with its overload where
/// others of the name take no tensor there.
const std::map<std::string, HostOperator> kOperators = {
    {"aten::_pack_padded_sequence", {{1}, {1}}},
    {"aten::_pad_packed_sequence", {{1}, {1}}},
    {"aten::lstm.data", {{1}, {}}},
    {"aten::gru.data", {{1}, {}}},
    {"aten::rnn_tanh.data", {{1}, {}}},
    {"aten::rnn_relu.data", {{1}, {}}},
    {"aten::tensor_split.tensor_indices_or_sections", {{1}, {}}},
    {"aten::_nested_view_from_buffer", {{1, 2, 3}, {}}},
    {"aten::_nested_from_padded", {{1}, {}}},
    {"aten::cpu", {{}, {0}}},
    {"aten::_shape_as_tensor", {{}, {0}}},
    {"aten::_nested_tensor_size", {{}, {0}}},
};

/// Null for one that is not among them.
const HostOperator* host_operator(const Node* node) {
  const c10::FunctionSchema* schema = node->maybeSchema();
  const auto found = schema ? kOperators.find(c10::toString(schema->operator_name())) : kOperators.end();
  return found == kOperators.end() ? nullptr : &found->second;
}

bool has_kernels_on_host_only(const Node* node, c10::Device device) {
  using c10::DispatchKey;
  return device.is_cuda() && has_kernel(node, {DispatchKey::CPU, DispatchKey::QuantizedCPU}) &&
         !has_kernel(node,
                     {DispatchKey::CUDA, DispatchKey::QuantizedCUDA, DispatchKey::CompositeImplicitAutograd,
                      DispatchKey::CompositeExplicitAutograd, DispatchKey::CompositeExplicitAutogradNonFunctional});
}

} // namespace

bool looks_up_by_index(const Node* node) {
  return is_one_of(node, {"aten::index", "aten::index_put", "aten::index_put_"});
}

Wanted wanted_of(const Node* node, std::size_t input, c10::Device device) {
  if (const HostOperator* known = host_operator(node)) {
    return known->inputs.count(input) > 0 ? Wanted::on_host : Wanted::anywhere;
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
  return known && known->outputs.count(output) > 0;
}

bool gives_scalar(const Node* node) {
  if (is_one_of(node, {"prim::NumToTensor", "aten::scalar_tensor"})) {
    return true;
  }
  const c10::FunctionSchema* schema = node->maybeSchema();
  if (!schema) {
    return false;
  }
  if (is_one_of(node, {"aten::tensor"})) {
    return node->input(0)->type()->kind() != c10::TypeKind::ListType;
  }
  if (is_one_of(node, {"aten::zeros", "aten::ones", "aten::full", "aten::empty"})) {
    const auto sizes = torch::jit::toIValue(node->input(0));
    const Node* list = node->input(0)->node();
    return (sizes && sizes->isIntList() && sizes->toIntVector().empty()) ||
           (list->kind() == prim::ListConstruct && list->inputs().empty());
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
    if (is_device(schema->arguments()[i].type())) {
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
