// How an operator is executed on sizes: see Note [Sizes without values] in shapes.cpp.

#include <offload/graph/sized_call.h>

#include <ATen/ops/empty_strided.h>
#include <ATen/ops/nonzero.h>

#include <algorithm>
#include <array>
#include <set>
#include <string_view>
#include <utility>

#include <offload/error.h>
#include <offload/graph/operators.h>
#include <offload/graph/shape_rules.h>
#include <offload/tensor/values.h>

namespace offload {

using torch::jit::Stack;

namespace {

constexpr std::int64_t kMostKnown = 1 << 20;      // elements of a tensor whose values are followed
constexpr std::int64_t kMostKnownReals = 1 << 16; // the same of one that is not of integers

void visit(const c10::IValue& value, const std::function<void(const at::Tensor&)>& look) {
  if (value.isTensor()) {
    look(value.toTensor());
  } else if (value.isTensorList() ||
             (value.isList() && !value.isIntList() && !value.isDoubleList() && !value.isBoolList())) {
    for (const c10::IValue& element : value.toListRef()) {
      visit(element, look);
    }
  }
}

} // namespace

bool may_be_known(const at::Tensor& tensor) {
  return tensor.numel() <=
         (c10::isIntegralType(tensor.scalar_type(), /*includeBool=*/true) ? kMostKnown : kMostKnownReals);
}

bool is_sized(const at::Tensor& tensor) {
  return tensor.defined() && tensor.layout() == at::kStrided && tensor.has_storage() && !tensor.is_quantized() &&
         !tensor.is_nested();
}

at::Tensor without_values(const at::Tensor& tensor) {
  if (!is_sized(tensor) || tensor.is_meta()) {
    return tensor;
  }
  at::Tensor sizes = at::empty_strided(tensor.sizes(), tensor.strides(), tensor.options().device(at::kMeta));
  sizes.unsafeGetTensorImpl()->set_requires_grad(tensor.requires_grad());
  return sizes;
}

c10::IValue copy_with(const c10::IValue& value, const std::function<at::Tensor(const at::Tensor&)>& replace) {
  return map_tensors(value, replace, [](const c10::IValue&) { return false; });
}

bool names_tensors(const c10::Argument& argument) {
  const c10::TypePtr& type = argument.type();
  return can_lease(type) || (type->kind() == c10::TypeKind::ListType && can_lease(type->containedType(0)));
}

thread_local SizesOfCall* SizesOfCall::current = nullptr;

namespace {

/// Runs the operator itself. It takes `arguments`, and returns its outputs.
std::vector<c10::IValue> run_itself(const Sized& sized, std::vector<c10::IValue> arguments, c10::Device device) {
  const auto& declared = sized.schema().arguments();
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    const bool makes_there =
        is_device(declared[i].type()) && (arguments[i].isDevice() || declared[i].name() == "device");
    if (makes_there) {
      arguments[i] = device;
    }
  }
  Stack stack = std::move(arguments);
  torch::jit::Operation run = sized.operation->getOperation();
  run(stack);
  return stack;
}

/// `mask` where it picks elements by truth, as the positions that it picks.
void replace_masks(std::vector<c10::IValue>& arguments) {
  if (!arguments[1].isList()) {
    return;
  }
  c10::List<std::optional<at::Tensor>> positions;
  for (const c10::IValue& index : arguments[1].toListRef()) {
    if (index.isTensor() && SizesOfCall::current->is_known(index.toTensor()) &&
        index.toTensor().scalar_type() == at::kBool) {
      for (const at::Tensor& dimension : index.toTensor().nonzero().unbind(1)) {
        positions.push_back(dimension);
      }
    } else {
      positions.push_back(index.toOptional<at::Tensor>());
    }
  }
  arguments[1] = positions;
}

std::vector<c10::IValue> outputs_of(const Sized& sized, std::vector<c10::IValue>& arguments) {
  const std::string& name = sized.schema().name();
  SizesOfCall& call = *SizesOfCall::current;
  bool any_sizes = false;
  bool any_known = false;
  for (const c10::IValue& argument : arguments) {
    visit(argument, [&](const at::Tensor& tensor) {
      any_known = any_known || call.is_known(tensor);
      any_sizes = any_sizes || (tensor.defined() && !call.is_known(tensor));
    });
  }
  if (!any_sizes && any_known && !sized.is_random) {
    return run_itself(sized, arguments, c10::kCPU);
  }
  if (!any_sizes && !any_known) {
    std::vector<c10::IValue> outputs = run_itself(sized, arguments, c10::kMeta);
    const bool is_small = std::all_of(outputs.begin(), outputs.end(), [](const c10::IValue& output) {
      return !output.isTensor() || may_be_known(output.toTensor());
    });
    return is_small && !sized.is_random ? run_itself(sized, arguments, c10::kCPU) : outputs;
  }
  if (name == "aten::index" || name == "aten::index_put_" || name == "aten::index_put") {
    replace_masks(arguments);
  }
  const auto& declared = sized.schema().arguments();
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    if (declared[i].alias_info() && declared[i].alias_info()->isWrite()) {
      visit(arguments[i], [&](const at::Tensor& tensor) { call.lose_values(tensor); });
    }
  }
  if (sized.schema().is_mutable() && arguments[0].isTensor() && sized.schema().returns().size() == 1) {
    return {without_values(arguments[0].toTensor())}; // it writes and returns its first argument
  }
  if (auto outputs = output_of_rule(sized.schema(), arguments)) {
    return std::move(*outputs);
  }
  for (c10::IValue& argument : arguments) {
    argument = copy_with(argument, [&](const at::Tensor& tensor) {
      const bool is_number = tensor.dim() == 0 && call.is_known(tensor);
      return is_number || placeholder_record(tensor) ? tensor : without_values(tensor);
    });
  }
  return run_itself(sized, arguments, c10::kMeta);
}

/// Dropout where nothing is trained.
bool does_nothing(const std::string& name, const std::vector<c10::IValue>& arguments) {
  return name.find("dropout") != std::string::npos && arguments.size() == 3 && arguments[2].isBool() &&
         !arguments[2].toBool();
}

/// An operator before which there were `steps_before`.
void record(const Sized& sized, const std::vector<c10::IValue>& arguments, const std::vector<c10::IValue>& outputs,
            std::size_t steps_before) {
  ShapedCall& call = SizesOfCall::current->call;
  ShapedOp op;
  op.leases = call.steps.size() > steps_before;
  op.name = sized.schema().name();
  op.steps = call.steps.size();
  op.flops = flops_of(op.name, arguments, outputs);
  std::set<const void*> given; // storages
  for (const c10::IValue& argument : arguments) {
    visit(argument, [&](const at::Tensor& tensor) {
      if (tensor.defined() && tensor.has_storage()) {
        given.insert(tensor.storage().unsafeGetStorageImpl());
        op.bytes += static_cast<double>(tensor.nbytes());
      }
    });
  }
  bool makes_tensors = false;
  for (const c10::IValue& output : outputs) {
    visit(output, [&](const at::Tensor& tensor) {
      if (is_sized(tensor)) {
        op.bytes += static_cast<double>(tensor.nbytes());
        if (given.count(tensor.storage().unsafeGetStorageImpl()) == 0) {
          makes_tensors = true;
          SizesOfCall::current->live.add(tensor);
        }
      }
    });
  }
  op.computes = (makes_tensors || sized.schema().is_mutable()) && !does_nothing(op.name, arguments);
  call.ops.push_back(std::move(op));
}

/// Why an operator could not be executed on sizes.
std::string reason(const std::exception& error, const Sized& sized) {
  static constexpr std::array<std::string_view, 5> kPick = {"aten::nonzero", "aten::masked_select", "aten::_unique2",
                                                            "aten::unique_dim", "aten::unique_consecutive"};
  const auto& returns = sized.schema().returns();
  const bool reads_values = (returns.size() == 1 && !names_tensors(returns[0])) ||
                            std::find(kPick.begin(), kPick.end(), sized.schema().name()) != kPick.end();
  if (reads_values) {
    return "it depends on values that only a run has";
  }
  if (dynamic_cast<const c10::NotImplementedError*>(&error)) {
    return "no rule for its sizes is known";
  }
  const std::string text = error.what();
  return text.substr(0, text.find('\n'));
}

[[noreturn]] void refuse(const Sized& sized, const std::string& why) {
  std::string message = sized.schema().name();
  message.append(" in ").append(sized.where).append(" can not be told from sizes: ").append(why);
  throw InputError(message);
}

} // namespace

void run_sized(const Sized& sized, Stack& stack) {
  std::vector<c10::IValue> arguments = torch::jit::pop(stack, sized.schema().arguments().size());
  std::vector<c10::IValue> outputs;
  const std::size_t steps_before = SizesOfCall::current->call.steps.size();
  try {
    outputs = outputs_of(sized, arguments);
    record(sized, arguments, outputs, steps_before);
  } catch (const std::exception& error) {
    SizesOfCall* call = SizesOfCall::current;
    try {
      refuse(sized, reason(error, sized));
    } catch (...) {
      call->failure = std::current_exception();
    }
    throw;
  }
  stack.insert(stack.end(), std::make_move_iterator(outputs.begin()), std::make_move_iterator(outputs.end()));
}

} // namespace offload
