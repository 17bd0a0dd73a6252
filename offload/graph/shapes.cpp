// Note [Sizes without values]
//
// A copy of a method's lowered graph runs on tensors that have sizes and no memory (PyTorch's device meta). Each node
// that takes or makes tensors is executed by an operator of ours, `offload::sized`, which knows the operator that it
// stands for. Control flow, lists and numbers are the interpreter's, so a call goes the way that it would go.
//
// A tensor is *known* when it has its values: integers among the arguments, and what follows from those and from
// constants alone. Known tensors are small and lie on the host, and operators compute with them there. Where a known
// tensor meets one that has only sizes, it is taken by its sizes, too.

#include <offload/graph/shapes.h>

#include <torch/csrc/jit/runtime/custom_operator.h>
#include <torch/csrc/jit/runtime/operator.h>

#include <algorithm>
#include <memory>
#include <string_view>
#include <unordered_map>
#include <utility>

#include <offload/graph/attributes.h>
#include <offload/graph/method_code.h>
#include <offload/graph/operators.h>
#include <offload/graph/sized_call.h>
#include <offload/load/file_bytes.h>
#include <offload/tensor/plain_modes.h>
#include <offload/tensor/values.h>
#include <ops/lease.h>

namespace offload {

namespace {

using torch::jit::Node;
using torch::jit::Stack;

const c10::Symbol kSized = c10::Symbol::fromQualString("offload::sized");
const c10::Symbol kName = c10::Symbol::attr("name");
const c10::Symbol kOverload = c10::Symbol::attr("overload");
const c10::Symbol kWhere = c10::Symbol::attr("where");
const c10::Symbol kRandom = c10::Symbol::attr("random");

torch::jit::Operation make_sized(const Node* node) {
  const Sized sized{torch::jit::findOperatorFor({node->s(kName), node->s(kOverload)}), node->s(kWhere),
                    node->i(kRandom) != 0};
  return [sized](Stack& stack) { run_sized(sized, stack); };
}

const torch::jit::RegisterOperators kRegistered({torch::jit::Operator(kSized, make_sized,
                                                                      c10::AliasAnalysisKind::CONSERVATIVE)});

/// True for what takes or makes tensors and is not control flow, a container, or a lease.
bool has_sizes(const Node* node) {
  const torch::jit::Operator* op = node->maybeOperator();
  if (!op || op->schema().is_vararg() || node->kind().is_prim() ||
      is_one_of(node, {"offload::acquire", "offload::acquire_optional", "offload::acquire_optionals", "offload::own",
                       "offload::own_all", "offload::rows", "offload::completed"})) {
    return false;
  }
  const auto& arguments = op->schema().arguments();
  const auto& returns = op->schema().returns();
  return std::any_of(arguments.begin(), arguments.end(), names_tensors) ||
         std::any_of(returns.begin(), returns.end(), names_tensors);
}

std::string place_of(const Node* node) {
  const auto place = node->sourceRange().file_line_col();
  if (!place) {
    return "the graph";
  }
  const auto& [file, line, column] = *place;
  return file + ":" + std::to_string(line);
}

/// What a node that asks a tensor where it is would be told in a run on `device`.
std::optional<c10::IValue> answer_on(c10::Device device, const Node* node) {
  const std::string_view name = node->kind().toQualString();
  return name == "prim::device"    ? std::optional<c10::IValue>(device)
         : name == "prim::is_cuda" ? std::optional<c10::IValue>(device.is_cuda())
         : name == "prim::is_cpu"  ? std::optional<c10::IValue>(device.is_cpu())
         : name == "prim::is_meta" ? std::optional<c10::IValue>(false)
                                   : std::nullopt;
}

std::shared_ptr<torch::jit::Graph> sized_graph(torch::jit::Graph& lowered, c10::Device device) {
  auto graph = lowered.copy();
  std::vector<Node*> replaced;
  for_each_node(graph->block(), [&](Node* node) {
    if (const auto answer = answer_on(device, node)) {
      const torch::jit::WithInsertPoint at(node);
      node->output()->replaceAllUsesWith(graph->insertConstant(*answer, node->sourceRange()));
      return;
    }
    if (!has_sizes(node)) {
      return;
    }
    Node* sized = graph->create(kSized, node->inputs(), node->outputs().size());
    const c10::FunctionSchema& schema = node->schema();
    sized->s_(kName, schema.name());
    sized->s_(kOverload, schema.overload_name());
    sized->s_(kWhere, place_of(node));
    sized->i_(kRandom, node->isNondeterministic() ? 1 : 0);
    sized->setSourceRange(node->sourceRange());
    sized->insertBefore(node);
    for (std::size_t i = 0; i < node->outputs().size(); ++i) {
      sized->output(i)->copyMetadata(node->output(i));
      node->output(i)->replaceAllUsesWith(sized->output(i));
    }
    replaced.push_back(node);
  });
  for (Node* node : replaced) {
    node->destroy();
  }
  return graph;
}

/// What operators do that lease nothing is work of the step before them. One that reads weights which were leased for
/// it reads them with the step, not again.
void add_to_steps(ShapedCall& call, const Program& program) {
  if (call.steps.empty()) {
    return;
  }
  std::vector<double> leased(call.steps.size()); // bytes that no operator has read
  for (std::size_t i = 0; i < leased.size(); ++i) {
    for (const WeightId weight : call.steps[i].weights) {
      leased[i] += call.steps[i].flops > 0 ? 0 : static_cast<double>(program.weights.weights[weight].bytes());
    }
  }
  for (const ShapedOp& op : call.ops) {
    if (!op.computes || op.leases) {
      continue;
    }
    const std::size_t step = std::max<std::size_t>(op.steps, 1) - 1;
    const double read = std::min(leased[step], op.bytes);
    leased[step] -= read;
    OtherOps& others = call.steps[step].others;
    others.flops += op.flops;
    others.bytes += op.bytes - read;
    others.launches += read > 0 ? 0 : 1; // else it is the step's own
  }
}

} // namespace

ShapedCall trace_shapes(const Program& program, const std::string& method, std::vector<c10::IValue> stack,
                        c10::Device device) {
  const PlainModes plain;
  const LoweredMethod& lowered = program.methods.at(method);
  const auto call = std::make_shared<SizesOfCall>();
  std::unordered_map<WeightId, c10::Storage> placeholders;
  const auto sizes_of = [&](const at::Tensor& tensor) {
    const auto id = program.weights.find(tensor);
    if (id && program.stays_because[*id].empty()) {
      const Weight& weight = program.weights.weights[*id];
      c10::Storage& storage = placeholders[*id];
      if (!storage) {
        storage = make_placeholder(call, *id, weight.name, weight.bytes(), c10::kCPU);
      }
      return tensor_on(storage, tensor, static_cast<std::int64_t>(weight.begin));
    }
    const bool has_values = tensor.device().is_cpu() && is_weight_like(tensor) && !file_bytes(tensor.storage());
    return has_values && may_be_known(tensor) ? tensor.clone() : without_values(tensor);
  };
  const auto argument = [](const at::Tensor& tensor) {
    return is_sized(tensor) && may_be_known(tensor) ? tensor.to(c10::kCPU, /*non_blocking=*/false, /*copy=*/true)
                                                    : without_values(tensor);
  };
  for (c10::IValue& value : stack) {
    const bool is_holder = std::any_of(program.holders.begin(), program.holders.end(),
                                       [&](const c10::IValue& holder) { return holder.is(value); });
    value = is_holder ? copy_with(value, sizes_of) : copy_with(value, argument);
  }
  const torch::jit::Code code(sized_graph(*lowered.code->lowered, device), method);
  SizesOfCall* outer = std::exchange(SizesOfCall::current, call.get());
  try {
    call->call.output = run_code(code, std::move(stack), /*gradients=*/false);
  } catch (...) {
    SizesOfCall::current = outer;
    if (call->failure) {
      std::rethrow_exception(call->failure);
    }
    throw;
  }
  SizesOfCall::current = outer;
  call->call.peak_bytes = call->live.peak();
  add_to_steps(call->call, program);
  return std::move(call->call);
}

} // namespace offload
