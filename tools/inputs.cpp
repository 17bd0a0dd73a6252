#include <tools/inputs.h>

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/randn.h>
#include <torch/csrc/jit/serialization/pickle.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <limits>
#include <sstream>

#include <offload/error.h>

namespace offload::tools {

namespace {

struct NamedType {
  const char* name;
  at::ScalarType dtype;
};

constexpr std::array<NamedType, 11> kTypes = {{{"float32", at::kFloat},
                                               {"float64", at::kDouble},
                                               {"float16", at::kHalf},
                                               {"bfloat16", at::kBFloat16},
                                               {"int64", at::kLong},
                                               {"int32", at::kInt},
                                               {"int16", at::kShort},
                                               {"int8", at::kChar},
                                               {"uint8", at::kByte},
                                               {"bool", at::kBool},
                                               {"complex64", at::kComplexFloat}}};

[[noreturn]] void refuse(const std::string& text, const std::string& why) {
  throw InputError("input '" + text + "': " + why + "; write it as 'float32[1024,1024]' or 'int64[1,128]<30000'");
}

std::int64_t parse_number(const std::string& text, std::string_view digits) {
  std::int64_t value = 0;
  const auto [rest, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
  if (error != std::errc() || rest != digits.data() + digits.size() || value < 0) {
    refuse(text, "'" + std::string(digits) + "' is not a size");
  }
  return value;
}

c10::IValue fit(const c10::IValue& value, const c10::TypePtr& type, c10::Device device, int depth);

/// The same for an element of a container, which then has to be of that type.
c10::IValue fit_element(const c10::IValue& value, const c10::TypePtr& type, c10::Device device, int depth) {
  c10::IValue fitted = fit(value, type, device, depth + 1);
  if (!fitted.type()->isSubtypeOf(*type)) {
    throw InputError("expected elements of type " + type->repr_str() + ", found " + fitted.type()->repr_str());
  }
  return fitted;
}

/// The value on `device`, and its containers of `type`: a file does not say what type lists and dicts are of.
c10::IValue fit(const c10::IValue& value, const c10::TypePtr& type, c10::Device device, int depth) {
  constexpr int kDeepest = 100;
  if (depth > kDeepest) {
    throw InputError("containers are nested more than 100 deep, or hold themselves");
  }
  if (value.isTensor()) {
    return value.toTensor().to(device);
  }
  if (const auto optional = type->cast<c10::OptionalType>()) {
    return value.isNone() ? value : fit(value, optional->getElementType(), device, depth);
  }
  const auto list_type = type->cast<c10::ListType>();
  if (value.isList() && (list_type || type->kind() == c10::TypeKind::AnyType)) {
    const c10::TypePtr element_type = list_type ? list_type->getElementType() : c10::TypePtr(c10::AnyType::get());
    c10::impl::GenericList list(element_type);
    for (const c10::IValue& element : value.toListRef()) {
      list.push_back(fit_element(element, element_type, device, depth));
    }
    return list;
  }
  const auto dict_type = type->cast<c10::DictType>();
  if (value.isGenericDict() && (dict_type || type->kind() == c10::TypeKind::AnyType)) {
    const c10::TypePtr key_type = dict_type ? dict_type->getKeyType() : c10::TypePtr(c10::AnyType::get());
    const c10::TypePtr value_type = dict_type ? dict_type->getValueType() : c10::TypePtr(c10::AnyType::get());
    c10::impl::GenericDict dict(key_type, value_type);
    for (const auto& entry : value.toGenericDict()) {
      dict.insert(fit_element(entry.key(), key_type, device, depth),
                  fit_element(entry.value(), value_type, device, depth));
    }
    return dict;
  }
  const auto tuple_type = type->cast<c10::TupleType>();
  if (value.isTuple()) {
    const auto& elements = value.toTupleRef().elements();
    const bool same_size = tuple_type && tuple_type->elements().size() == elements.size();
    std::vector<c10::IValue> fitted;
    for (std::size_t i = 0; i < elements.size(); ++i) {
      const c10::TypePtr element_type = same_size ? tuple_type->elements()[i] : c10::TypePtr(c10::AnyType::get());
      fitted.push_back(fit(elements[i], element_type, device, depth + 1));
    }
    return same_size && tuple_type->schema() ? c10::ivalue::Tuple::createNamed(std::move(fitted), tuple_type)
                                             : c10::ivalue::Tuple::create(std::move(fitted));
  }
  return value;
}

} // namespace

InputSpec parse_input(const std::string& text) {
  const std::size_t open = text.find('[');
  const std::size_t close = text.find(']');
  if (open == std::string::npos || close == std::string::npos || close < open) {
    refuse(text, "sizes in brackets are missing");
  }
  InputSpec spec{at::kFloat, {}, 2};
  const std::string name = text.substr(0, open);
  const auto* type = std::find_if(kTypes.begin(), kTypes.end(), [&](const NamedType& t) { return name == t.name; });
  if (type == kTypes.end()) {
    std::string names;
    for (const NamedType& known : kTypes) {
      names += std::string(names.empty() ? "" : ", ") + known.name;
    }
    refuse(text, "'" + name + "' is not a dtype (" + names + ")");
  }
  spec.dtype = type->dtype;
  std::string_view sizes = std::string_view(text).substr(open + 1, close - open - 1);
  std::uint64_t elements = 1;
  while (!sizes.empty()) {
    const std::size_t comma = std::min(sizes.find(','), sizes.size());
    spec.sizes.push_back(parse_number(text, sizes.substr(0, comma)));
    if (__builtin_mul_overflow(elements, static_cast<std::uint64_t>(spec.sizes.back()), &elements) ||
        elements > (std::uint64_t{1} << 48)) {
      refuse(text, "it has more elements than any memory holds");
    }
    if (comma + 1 == sizes.size()) {
      refuse(text, "a size is missing after the last comma");
    }
    sizes.remove_prefix(std::min(comma + 1, sizes.size()));
  }
  const std::string rest = text.substr(close + 1);
  if (!rest.empty()) {
    if (rest[0] != '<' || !at::isIntegralType(spec.dtype, /*includeBool=*/false)) {
      refuse(text, "'" + rest + "' is not understood: only integers have a bound");
    }
    spec.bound = parse_number(text, std::string_view(rest).substr(1));
    const std::size_t bits = 8 * c10::elementSize(spec.dtype) - (spec.dtype == at::kByte ? 0 : 1);
    const std::int64_t most = bits >= 63 ? std::numeric_limits<std::int64_t>::max() : std::int64_t{1} << bits;
    if (spec.bound < 1 || spec.bound > most) {
      refuse(text, "the bound must be 1 to " + std::to_string(most));
    }
  }
  return spec;
}

at::Tensor make_input(const InputSpec& spec, std::uint64_t seed, c10::Device device) {
  const auto generator = at::make_generator<at::CPUGeneratorImpl>(seed);
  if (at::isIntegralType(spec.dtype, /*includeBool=*/true)) {
    return at::randint(0, spec.bound, spec.sizes, generator, at::TensorOptions(at::kLong)).to(device, spec.dtype);
  }
  return at::randn(spec.sizes, generator, at::TensorOptions(at::kFloat)).to(device, spec.dtype);
}

std::vector<std::vector<c10::IValue>> read_inputs(const std::string& path, c10::Device device,
                                                  const c10::FunctionSchema& schema) {
  if (std::filesystem::exists(path) && !std::filesystem::is_regular_file(path)) {
    throw InputError(path + ": is no file that torch.save wrote, but a directory or a device");
  }
  std::ifstream file(path, std::ios::binary);
  if (!file) {
    throw InputError(path + ": can not be opened");
  }
  const std::vector<char> bytes((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  c10::IValue value;
  try {
    value = torch::jit::pickle_load(bytes);
  } catch (const std::exception&) {
    throw InputError(path +
                     ": is not a file that torch.save wrote, or holds more than tensors, numbers and containers");
  }
  if (!value.isList() && !value.isTuple()) {
    throw InputError(path + ": holds no list of calls; save it as torch.save([[x0, y0], [x1, y1]], path)");
  }
  const std::vector<c10::IValue> calls =
      value.isList()
          ? std::vector<c10::IValue>(value.toListRef().begin(), value.toListRef().end())
          : std::vector<c10::IValue>(value.toTupleRef().elements().begin(), value.toTupleRef().elements().end());
  std::vector<std::vector<c10::IValue>> result;
  for (const c10::IValue& call : calls) {
    std::vector<c10::IValue> values = {call};
    if (call.isTuple()) {
      values.assign(call.toTupleRef().elements().begin(), call.toTupleRef().elements().end());
    } else if (call.isList()) {
      values.assign(call.toListRef().begin(), call.toListRef().end());
    }
    std::vector<c10::IValue> inputs;
    for (std::size_t i = 0; i < values.size(); ++i) {
      const bool declared = i + 1 < schema.arguments().size(); // the first is the module
      const c10::TypePtr type = declared ? schema.arguments()[i + 1].type() : c10::TypePtr(c10::AnyType::get());
      try {
        inputs.push_back(fit(values[i], type, device, 0));
      } catch (const InputError& error) {
        throw InputError(
            path + ": call " + std::to_string(result.size()) + ", " +
            (declared ? "argument '" + schema.arguments()[i + 1].name() + "'" : "argument " + std::to_string(i)) +
            ": " + error.what());
      }
    }
    result.push_back(std::move(inputs));
  }
  if (result.empty()) {
    throw InputError(path + ": holds no call");
  }
  return result;
}

bool needs_no_inputs(const c10::FunctionSchema& schema) {
  return std::all_of(schema.arguments().begin() + 1, schema.arguments().end(),
                     [](const c10::Argument& argument) { return argument.default_value().has_value(); });
}

std::string describe_size(const c10::IValue& value) {
  if (!value.isTensor() || !value.toTensor().defined()) {
    return value.tagKind();
  }
  const at::Tensor& tensor = value.toTensor();
  const auto known = std::find_if(kTypes.begin(), kTypes.end(),
                                  [&](const NamedType& type) { return type.dtype == tensor.scalar_type(); });
  std::string text = known != kTypes.end() ? known->name : c10::toString(tensor.scalar_type());
  text += '[';
  for (const std::int64_t size : tensor.sizes()) {
    text += (text.back() == '[' ? "" : ",") + std::to_string(size);
  }
  return text + ']';
}

std::string describe_signature(const c10::FunctionSchema& schema) {
  std::stringstream text;
  std::string example;
  text << schema.name() << '(';
  for (std::size_t i = 1; i < schema.arguments().size(); ++i) {
    const c10::Argument& argument = schema.arguments()[i];
    text << (i > 1 ? ", " : "") << argument.type()->str() << ' ' << argument.name();
    if (argument.type()->kind() == c10::TypeKind::TensorType && !argument.default_value()) {
      example += " --input 'float32[1,128]'";
    }
  }
  text << "); ";
  if (!example.empty()) {
    text << "give each tensor as in:" << example << ", or ";
  }
  text << "give all of them in a file with --inputs FILE.pt, as torch.save([[x0, y0], [x1, y1]], 'FILE.pt') writes it";
  return text.str();
}

} // namespace offload::tools
