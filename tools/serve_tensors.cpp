#include <tools/serve_tensors.h>

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/tensor.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cstring>
#include <map>
#include <memory>
#include <set>
#include <utility>

namespace offload::tools {

namespace {

// In the order of Datatype, without strings.
constexpr std::array<at::ScalarType, 13> kTypes = {at::kBool,     at::kByte,  at::kUInt16, at::kUInt32, at::kUInt64,
                                                   at::kChar,     at::kShort, at::kInt,    at::kLong,   at::kHalf,
                                                   at::kBFloat16, at::kFloat, at::kDouble};

[[noreturn]] void refuse(const std::string& name, const std::string& why) {
  throw RequestError(400, "'" + name + "': " + why);
}

/// The inputs of a request, and which of them have found an argument.
class Inputs {
 public:
  Inputs(const std::vector<WireTensor>& inputs, c10::Device device) : device_(device) {
    for (const WireTensor& input : inputs) {
      by_name_[input.name] = &input;
    }
  }

  c10::Device device() const { return device_; }

  /// Whether there is `name`, or anything below it.
  bool has(const std::string& name) const {
    const auto found = by_name_.lower_bound(name);
    const auto below = by_name_.lower_bound(name + ".");
    return (found != by_name_.end() && found->first == name) ||
           (below != by_name_.end() && below->first.starts_with(name + "."));
  }

  /// What follows `name` and a dot, in the inputs that begin with them.
  std::vector<std::string> keys_below(const std::string& name) const {
    std::vector<std::string> keys;
    const std::string prefix = name + ".";
    for (auto entry = by_name_.lower_bound(prefix); entry != by_name_.end() && entry->first.starts_with(prefix);
         ++entry) {
      keys.push_back(entry->first.substr(prefix.size()));
    }
    return keys;
  }

  const WireTensor& take(const std::string& name) {
    const auto found = by_name_.find(name);
    if (found == by_name_.end()) {
      refuse(name, "the model takes it, and it is not among the inputs");
    }
    taken_.insert(name);
    return *found->second;
  }

  void require_all_taken(const c10::FunctionSchema& schema) const {
    for (const auto& [name, input] : by_name_) {
      if (!taken_.contains(name)) {
        std::string names;
        for (std::size_t i = 1; i < schema.arguments().size(); ++i) {
          names += (i > 1 ? ", " : "") + schema.arguments()[i].type()->str() + " " + schema.arguments()[i].name();
        }
        refuse(name, "the model takes no such input; it takes " + (names.empty() ? "none" : names));
      }
    }
  }

 private:
  std::map<std::string, const WireTensor*> by_name_;
  std::set<std::string> taken_;
  c10::Device device_;
};

at::Tensor tensor_of(const WireTensor& input, c10::Device device) {
  if (input.datatype == Datatype::bytes) {
    refuse(input.name, "the model takes a tensor of numbers there, and BYTES are given");
  }
  const at::ScalarType type = kTypes.at(static_cast<std::size_t>(input.datatype));
  at::Tensor tensor = at::empty(input.shape, at::TensorOptions(type)); // bytes of a body are not aligned
  if (tensor.nbytes() > 0) {
    std::memcpy(tensor.mutable_data_ptr(), input.bytes().data(), tensor.nbytes());
  }
  return tensor.to(device);
}

/// The elements of a list of numbers or strings, or a single one.
template <typename Element>
std::vector<Element> elements_of(const WireTensor& input, at::ScalarType type) {
  if (input.datatype == Datatype::bytes) {
    refuse(input.name, "the model takes numbers there, and BYTES are given");
  }
  const at::Tensor given = tensor_of(input, at::kCPU);
  const bool fits = type == at::kDouble || given.scalar_type() == type ||
                    (type == at::kLong && at::isIntegralType(given.scalar_type(), /*includeBool=*/false));
  if (!fits) {
    refuse(input.name, "the model takes " + std::string(type == at::kLong ? "whole numbers" : "BOOL") + " there, and " +
                           to_string(input.datatype) + " is given");
  }
  const at::Tensor converted = given.to(type).flatten();
  std::vector<Element> elements;
  for (std::int64_t i = 0; i < converted.numel(); ++i) {
    elements.push_back(converted.const_data_ptr<Element>()[i]);
  }
  return elements;
}

const std::vector<std::string>& strings_of(const WireTensor& input) {
  if (input.datatype != Datatype::bytes) {
    refuse(input.name,
           "the model takes strings there (BYTES), and " + std::string(to_string(input.datatype)) + " is given");
  }
  return input.strings;
}

template <typename Elements>
auto only(const WireTensor& input, const Elements& elements) {
  if (elements.size() != 1) {
    refuse(input.name, "the model takes one value there, and " + std::to_string(elements.size()) + " are given");
  }
  return typename Elements::value_type(elements.front());
}

/// A number or string: by the type of an argument.
std::optional<c10::IValue> scalar_of(const WireTensor& input, c10::TypeKind kind) {
  switch (kind) {
    case c10::TypeKind::IntType:
      return only(input, elements_of<std::int64_t>(input, at::kLong));
    case c10::TypeKind::FloatType:
      return only(input, elements_of<double>(input, at::kDouble));
    case c10::TypeKind::BoolType:
      return only(input, elements_of<bool>(input, at::kBool));
    case c10::TypeKind::StringType:
      return only(input, strings_of(input));
    default:
      return std::nullopt;
  }
}

template <typename Element>
c10::IValue list_of(const std::vector<Element>& elements) {
  return c10::IValue(elements);
}
c10::IValue list_of(const std::vector<bool>& elements) {
  c10::List<bool> list;
  for (const bool element : elements) {
    list.push_back(element);
  }
  return list;
}

bool is_scalar(c10::TypeKind kind) {
  return kind == c10::TypeKind::IntType || kind == c10::TypeKind::FloatType || kind == c10::TypeKind::BoolType ||
         kind == c10::TypeKind::StringType;
}

c10::IValue list_of_scalars(const WireTensor& input, c10::TypeKind kind) {
  switch (kind) {
    case c10::TypeKind::IntType:
      return list_of(elements_of<std::int64_t>(input, at::kLong));
    case c10::TypeKind::FloatType:
      return list_of(elements_of<double>(input, at::kDouble));
    case c10::TypeKind::BoolType:
      return list_of(elements_of<bool>(input, at::kBool));
    default:
      return list_of(strings_of(input));
  }
}

c10::IValue value_of(const c10::TypePtr& type, const std::string& name, Inputs& inputs) {
  if (const auto optional = type->cast<c10::OptionalType>()) {
    return inputs.has(name) ? value_of(optional->getElementType(), name, inputs) : c10::IValue();
  }
  if (const auto list_type = type->cast<c10::ListType>()) {
    const c10::TypePtr element = list_type->getElementType();
    if (is_scalar(element->kind())) {
      return list_of_scalars(inputs.take(name), element->kind());
    }
    c10::impl::GenericList list(element);
    while (inputs.has(name + "." + std::to_string(list.size()))) {
      list.push_back(value_of(element, name + "." + std::to_string(list.size()), inputs));
    }
    return list;
  }
  if (const auto dict_type = type->cast<c10::DictType>()) {
    c10::impl::GenericDict dict(dict_type->getKeyType(), dict_type->getValueType());
    for (const std::string& key : inputs.keys_below(name)) {
      dict.insert(key, value_of(dict_type->getValueType(), std::string(name).append(".").append(key), inputs));
    }
    return dict;
  }
  if (const auto tuple_type = type->cast<c10::TupleType>()) {
    std::vector<c10::IValue> elements;
    for (const c10::TypePtr& element : tuple_type->elements()) {
      elements.push_back(value_of(element, name + "." + std::to_string(elements.size()), inputs));
    }
    return tuple_type->schema() ? c10::ivalue::Tuple::createNamed(std::move(elements), tuple_type)
                                : c10::ivalue::Tuple::create(std::move(elements));
  }
  const WireTensor& input = inputs.take(name);
  const std::optional<c10::IValue> scalar = scalar_of(input, type->kind());
  return scalar ? *scalar : c10::IValue(tensor_of(input, inputs.device()));
}

/// What of `type` no inputs can give; empty when they can. Within a dict, names end where keys do.
std::string unservable(const c10::TypePtr& type, bool in_dict) {
  if (is_scalar(type->kind()) || type->kind() == c10::TypeKind::TensorType) {
    return "";
  }
  if (const auto optional = type->cast<c10::OptionalType>()) {
    return in_dict ? type->str() : unservable(optional->getElementType(), in_dict);
  }
  if (const auto list_type = type->cast<c10::ListType>()) {
    const bool named = !is_scalar(list_type->getElementType()->kind());
    return in_dict && named ? type->str() : unservable(list_type->getElementType(), in_dict);
  }
  if (const auto dict_type = type->cast<c10::DictType>()) {
    return in_dict || dict_type->getKeyType()->kind() != c10::TypeKind::StringType
               ? type->str()
               : unservable(dict_type->getValueType(), /*in_dict=*/true);
  }
  if (const auto tuple_type = type->cast<c10::TupleType>()) {
    for (const c10::TypePtr& element : tuple_type->elements()) {
      const std::string what = in_dict ? type->str() : unservable(element, in_dict);
      if (!what.empty()) {
        return what;
      }
    }
    return "";
  }
  return type->str();
}

WireTensor wire_of(std::string name, const at::Tensor& tensor) {
  const auto type = datatype_of(tensor.scalar_type());
  if (!type || tensor.layout() != at::kStrided) {
    throw RequestError(500, "'" + name + "': the model returns a tensor of " + c10::toString(tensor.scalar_type()) +
                                (tensor.layout() != at::kStrided ? " that is sparse" : "") +
                                ", for which the protocol has no form");
  }
  // Waits for the device. It is not copied again: it may be large.
  const auto host = std::make_shared<const at::Tensor>(tensor.detach().to(at::kCPU).resolve_neg().contiguous());
  WireTensor wire;
  wire.name = std::move(name);
  wire.datatype = *type;
  wire.shape = host->sizes().vec();
  wire.binary = {static_cast<const char*>(host->const_data_ptr()), host->nbytes()};
  wire.holder = host;
  return wire;
}

template <typename Element>
WireTensor scalar_wire(std::string name, Datatype datatype, Element element) {
  WireTensor wire;
  wire.name = std::move(name);
  wire.datatype = datatype;
  wire.owned.assign(reinterpret_cast<const char*>(&element), sizeof(element));
  return wire;
}

/// With a name for what has none of its own: output_0 at the top, .0 below.
void flatten(const c10::IValue& value, const std::string& name, std::vector<WireTensor>& outputs) {
  const auto below = [&](const std::string& key) { return name.empty() ? key : name + "." + key; };
  const auto numbered = [&](std::size_t i) { return below((name.empty() ? "output_" : "") + std::to_string(i)); };
  if (value.isNone()) {
    return;
  }
  if (value.isTuple()) {
    const auto& tuple = value.toTupleRef();
    const auto schema = tuple.type()->schema();
    for (std::size_t i = 0; i < tuple.elements().size(); ++i) {
      flatten(tuple.elements()[i], schema ? below(schema->arguments().at(i).name()) : numbered(i), outputs);
    }
  } else if (value.isList()) {
    std::size_t i = 0;
    for (const c10::IValue& element : value.toList().vec()) {
      flatten(element, numbered(i++), outputs);
    }
  } else if (value.isGenericDict()) {
    for (const auto& entry : value.toGenericDict()) {
      if (!entry.key().isString() && !entry.key().isInt()) {
        throw RequestError(500, "'" + name + "': the model returns a dict whose keys are neither strings nor integers");
      }
      flatten(entry.value(),
              below(entry.key().isString() ? entry.key().toStringRef() : std::to_string(entry.key().toInt())), outputs);
    }
  } else {
    const std::string own = name.empty() ? "output_0" : name;
    if (value.isTensor() && value.toTensor().defined()) {
      outputs.push_back(wire_of(own, value.toTensor()));
    } else if (value.isInt()) {
      outputs.push_back(scalar_wire(own, Datatype::int64, value.toInt()));
    } else if (value.isDouble()) {
      outputs.push_back(scalar_wire(own, Datatype::fp64, value.toDouble()));
    } else if (value.isBool()) {
      outputs.push_back(scalar_wire(own, Datatype::boolean, value.toBool()));
    } else if (value.isString()) {
      WireTensor wire;
      wire.name = own;
      wire.datatype = Datatype::bytes;
      wire.strings = {value.toStringRef()};
      outputs.push_back(std::move(wire));
    } else {
      throw RequestError(
          500, "'" + own + "': the model returns a " + value.tagKind() + ", for which the protocol has no form");
    }
  }
}

} // namespace

std::optional<Datatype> datatype_of(at::ScalarType type) {
  const auto* found = std::find(kTypes.begin(), kTypes.end(), type);
  return found == kTypes.end() ? std::nullopt : std::optional(static_cast<Datatype>(found - kTypes.begin()));
}

void require_servable(const c10::FunctionSchema& schema) {
  for (std::size_t i = 1; i < schema.arguments().size(); ++i) {
    const c10::Argument& argument = schema.arguments()[i];
    const std::string what = unservable(argument.type(), /*in_dict=*/false);
    if (!what.empty() && !argument.default_value()) {
      throw InputError("argument '" + argument.name() + "' of " + schema.name() + " takes " + argument.type()->str() +
                       ", and " + what +
                       " has no form in the protocol: tensors, numbers, strings, and lists, tuples "
                       "and dicts of these have");
    }
  }
}

std::vector<c10::IValue> arguments_of(const c10::FunctionSchema& schema, const std::vector<WireTensor>& wires,
                                      c10::Device device) {
  Inputs inputs(wires, device);
  std::vector<c10::IValue> values;
  for (std::size_t i = 1; i < schema.arguments().size(); ++i) {
    const c10::Argument& argument = schema.arguments()[i];
    const bool by_default = argument.default_value() && !inputs.has(argument.name());
    values.push_back(by_default ? *argument.default_value() : value_of(argument.type(), argument.name(), inputs));
  }
  inputs.require_all_taken(schema);
  return values;
}

std::vector<WireTensor> outputs_of(const c10::IValue& value) {
  std::vector<WireTensor> outputs;
  flatten(value, "", outputs);
  std::set<std::string> names;
  for (const WireTensor& output : outputs) {
    if (!names.insert(output.name).second) {
      throw RequestError(500, "'" + output.name + "': the model returns two values of this name");
    }
  }
  return outputs;
}

} // namespace offload::tools
