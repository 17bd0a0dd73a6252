#include <tools/serve_values.h>

#include <array>
#include <charconv>
#include <cmath>
#include <concepts>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>

namespace offload::tools {

namespace {

[[noreturn]] void refuse(const WireTensor& tensor, const std::string& why) {
  throw RequestError(400, "'" + tensor.name + "': " + why);
}

std::string shown(const JsonValue& value) {
  const auto* text = std::get_if<JsonText>(&value);
  return text ? dump(nlohmann::json(**text))
              : std::visit(
                    []<typename Known>(const Known& known) {
                      if constexpr (std::is_arithmetic_v<Known>) {
                        return dump(nlohmann::json(known));
                      }
                      return std::string();
                    },
                    value);
}

template <typename Integer>
Integer integer_of(const WireTensor& tensor, const JsonValue& value, std::size_t index) {
  if (const auto* number = std::get_if<std::uint64_t>(&value); number && std::in_range<Integer>(*number)) {
    return static_cast<Integer>(*number);
  }
  if (const auto* number = std::get_if<std::int64_t>(&value); number && std::in_range<Integer>(*number)) {
    return static_cast<Integer>(*number);
  }
  refuse(tensor, "element " + std::to_string(index) + " is " + shown(value) + "; " + to_string(tensor.datatype) +
                     " holds whole numbers from " + std::to_string(std::numeric_limits<Integer>::min()) + " to " +
                     std::to_string(std::numeric_limits<Integer>::max()));
}

template <std::floating_point Float>
Float float_of(const WireTensor& tensor, const JsonValue& value, std::size_t index) {
  double number = 0;
  if (const auto* real = std::get_if<double>(&value)) {
    number = *real;
  } else if (const auto* natural = std::get_if<std::uint64_t>(&value)) {
    number = static_cast<double>(*natural);
  } else if (const auto* whole = std::get_if<std::int64_t>(&value)) {
    number = static_cast<double>(*whole);
  } else {
    refuse(tensor, "element " + std::to_string(index) + " is " + shown(value) + ", and no number");
  }
  if (std::abs(number) > static_cast<double>(std::numeric_limits<Float>::max())) {
    refuse(tensor, "element " + std::to_string(index) + " is " + shown(value) + ": too large for " +
                       to_string(tensor.datatype));
  }
  return static_cast<Float>(number);
}

bool boolean_of(const WireTensor& tensor, const JsonValue& value, std::size_t index) {
  if (const auto* known = std::get_if<bool>(&value)) {
    return *known;
  }
  if (const auto* number = std::get_if<std::uint64_t>(&value); number && *number <= 1) {
    return *number == 1;
  }
  refuse(tensor, "element " + std::to_string(index) + " is " + shown(value) + "; BOOL holds true, false, 0 and 1");
}

template <typename Element, typename Convert>
void fill(WireTensor& tensor, const std::vector<JsonValue>& values, Convert convert) {
  tensor.owned.resize(values.size() * sizeof(Element));
  for (std::size_t i = 0; i < values.size(); ++i) {
    const Element element = convert(tensor, values[i], i);
    std::memcpy(tensor.owned.data() + i * sizeof(Element), &element, sizeof(Element));
  }
}

/// Calls visit(Element()) with the type that C++ has for a datatype that JSON can carry.
template <typename Visit>
void with_element(const WireTensor& tensor, Visit visit) {
  switch (tensor.datatype) {
    case Datatype::boolean:
    case Datatype::uint8:
      return visit(std::uint8_t());
    case Datatype::uint16:
      return visit(std::uint16_t());
    case Datatype::uint32:
      return visit(std::uint32_t());
    case Datatype::uint64:
      return visit(std::uint64_t());
    case Datatype::int8:
      return visit(std::int8_t());
    case Datatype::int16:
      return visit(std::int16_t());
    case Datatype::int32:
      return visit(std::int32_t());
    case Datatype::int64:
      return visit(std::int64_t());
    case Datatype::fp32:
      return visit(float());
    case Datatype::fp64:
      return visit(double());
    case Datatype::fp16:
    case Datatype::bf16:
    case Datatype::bytes:
      break;
  }
  refuse(tensor, std::string(to_string(tensor.datatype)) +
                     " has no form in JSON: send it as bytes (binary_data_size), and ask for it with binary_data true");
}

template <typename Element>
void append_number(std::string& text, const WireTensor& tensor, Element element) {
  if (tensor.datatype == Datatype::boolean) {
    text += element != 0 ? "true" : "false";
    return;
  }
  if constexpr (std::floating_point<Element>) {
    if (!std::isfinite(element)) {
      refuse(tensor, "JSON has no " + std::string(std::isnan(element) ? "NaN" : "infinity") +
                         ", which it holds: ask for it with binary_data true");
    }
  }
  std::array<char, 32> digits;
  const auto [end, error] = std::to_chars(digits.data(), digits.data() + digits.size(), element);
  text.append(digits.data(), end);
}

} // namespace

void fill_from_json(WireTensor& tensor, const std::vector<JsonValue>& values) {
  if (values.size() != tensor.elements()) {
    refuse(tensor, std::to_string(values.size()) + " elements are in data, and its shape takes " +
                       std::to_string(tensor.elements()));
  }
  if (tensor.datatype == Datatype::bytes) {
    for (const JsonValue& value : values) {
      const auto* text = std::get_if<JsonText>(&value);
      if (!text) {
        refuse(tensor,
               "element " + std::to_string(tensor.strings.size()) + " is " + shown(value) + "; BYTES holds strings");
      }
      tensor.strings.push_back(**text);
    }
    return;
  }
  with_element(tensor, [&]<typename Element>(Element) {
    if constexpr (std::floating_point<Element>) {
      fill<Element>(tensor, values, float_of<Element>);
    } else if (tensor.datatype == Datatype::boolean) {
      fill<Element>(tensor, values, boolean_of);
    } else {
      fill<Element>(tensor, values, integer_of<Element>);
    }
  });
}

void split_strings(WireTensor& tensor) {
  std::string_view rest = tensor.binary;
  while (!rest.empty()) {
    std::uint32_t bytes = 0;
    if (rest.size() < sizeof(bytes)) {
      refuse(tensor, "its last " + std::to_string(rest.size()) + " bytes are no length of a string, which has 4");
    }
    std::memcpy(&bytes, rest.data(), sizeof(bytes));
    rest.remove_prefix(sizeof(bytes));
    if (bytes > rest.size()) {
      refuse(tensor, "string " + std::to_string(tensor.strings.size()) + " is said to have " + std::to_string(bytes) +
                         " bytes, and " + std::to_string(rest.size()) + " are left");
    }
    tensor.strings.emplace_back(rest.substr(0, bytes));
    rest.remove_prefix(bytes);
  }
  if (tensor.strings.size() != tensor.elements()) {
    refuse(tensor, std::to_string(tensor.strings.size()) + " strings are given, and its shape takes " +
                       std::to_string(tensor.elements()));
  }
}

std::string join_strings(const std::vector<std::string>& strings) {
  std::string joined;
  for (const std::string& text : strings) {
    const auto bytes = static_cast<std::uint32_t>(text.size());
    joined.append(reinterpret_cast<const char*>(&bytes), sizeof(bytes));
    joined += text;
  }
  return joined;
}

void append_json_array(std::string& text, const WireTensor& tensor) {
  text += '[';
  if (tensor.datatype == Datatype::bytes) {
    for (std::size_t i = 0; i < tensor.strings.size(); ++i) {
      text += (i > 0 ? "," : "") + dump(nlohmann::json(tensor.strings[i]));
    }
  } else {
    with_element(tensor, [&]<typename Element>(Element) {
      const std::string_view bytes = tensor.bytes();
      for (std::size_t at = 0; at < bytes.size(); at += sizeof(Element)) {
        Element element;
        std::memcpy(&element, bytes.data() + at, sizeof(Element));
        if (at > 0) {
          text += ',';
        }
        append_number(text, tensor, element);
      }
    });
  }
  text += ']';
}

} // namespace offload::tools
