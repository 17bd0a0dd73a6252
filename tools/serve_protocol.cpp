#include <tools/serve_protocol.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include <tools/serve_values.h>

namespace offload::tools {

namespace {

using nlohmann::json;

constexpr int kDeepest = 32; // of what is no data: parameters of clients
constexpr int kMostDims = 64;
constexpr std::size_t kMostTensors = 4096;

struct NamedDatatype {
  const char* name;
  std::size_t bytes;
};

// In the order of Datatype.
constexpr std::array<NamedDatatype, 14> kDatatypes = {{{"BOOL", 1},
                                                       {"UINT8", 1},
                                                       {"UINT16", 2},
                                                       {"UINT32", 4},
                                                       {"UINT64", 8},
                                                       {"INT8", 1},
                                                       {"INT16", 2},
                                                       {"INT32", 4},
                                                       {"INT64", 8},
                                                       {"FP16", 2},
                                                       {"BF16", 2},
                                                       {"FP32", 4},
                                                       {"FP64", 8},
                                                       {"BYTES", 0}}};

[[noreturn]] void refuse(const std::string& what) { throw RequestError(400, what); }

/// The JSON of a request without its data, which is most of it: that is gathered on the way, one list for each input.
struct Header {
  json rest;
  std::vector<std::vector<JsonValue>> data; ///< in the order of the inputs
};

class HeaderReader {
 public:
  /// For json::parse: called for each key and value, false leaves that out of what is kept.
  bool operator()(int depth, json::parse_event_t event, json& value) {
    using Event = json::parse_event_t;
    if (depth > kDeepest + kMostDims) {
      refuse("the JSON is nested more than " + std::to_string(kDeepest + kMostDims) + " deep");
    }
    if (event == Event::key && depth == 1) {
      in_inputs_ = value == "inputs";
      if (in_inputs_ && std::exchange(had_inputs_, true)) {
        refuse("inputs: there are two lists of them");
      }
    } else if (in_inputs_ && depth == 2 && event == Event::object_start) {
      if (data.size() == kMostTensors) {
        refuse("inputs: there are more than " + std::to_string(kMostTensors));
      }
      data.emplace_back();
      had_data_ = false;
    } else if (in_inputs_ && depth == 3 && event == Event::key) {
      in_data_ = value == "data";
      if (in_data_ && (data.empty() || std::exchange(had_data_, true))) {
        refuse("inputs[" + std::to_string(data.size()) + "].data: there are two lists of elements");
      }
    } else if (in_inputs_ && in_data_ && depth >= 3) {
      return take(depth, event, value);
    }
    return true;
  }

  std::vector<std::vector<JsonValue>> data;

 private:
  bool take(int depth, json::parse_event_t event, const json& value) {
    using Event = json::parse_event_t;
    if (event == Event::array_end && depth == 3) {
      in_data_ = false;
      return true; // emptied: it says that there was one
    }
    if (event == Event::array_end) {
      return false;
    }
    if (event == Event::object_start || (event == Event::value && depth == 3)) {
      refuse("inputs[" + std::to_string(data.size() - 1) + "].data: a list of elements was wanted");
    }
    if (event != Event::value) {
      return true;
    }
    std::vector<JsonValue>& values = data.back();
    if (value.is_boolean()) {
      values.emplace_back(value.get<bool>());
    } else if (value.is_number_unsigned()) {
      values.emplace_back(value.get<std::uint64_t>());
    } else if (value.is_number_integer()) {
      values.emplace_back(value.get<std::int64_t>());
    } else if (value.is_number_float()) {
      values.emplace_back(value.get<double>());
    } else if (value.is_string()) {
      values.emplace_back(std::make_unique<const std::string>(value.get<std::string>()));
    } else {
      refuse("inputs[" + std::to_string(data.size() - 1) + "].data: element " + std::to_string(values.size()) +
             " is null");
    }
    return false;
  }

  bool in_inputs_ = false;
  bool had_inputs_ = false;
  bool in_data_ = false;
  bool had_data_ = false;
};

Header parse_header(std::string_view text) {
  HeaderReader reader;
  Header header;
  try {
    header.rest = json::parse(
        text, [&](int depth, json::parse_event_t event, json& value) { return reader(depth, event, value); });
  } catch (const json::exception& error) {
    const std::string what = error.what();
    refuse("the body is no JSON: " + what.substr(what.find("] ") + 2));
  }
  if (!header.rest.is_object()) {
    refuse(R"(the body is no JSON object: {"inputs": [...]} was wanted)");
  }
  header.data = std::move(reader.data);
  return header;
}

std::string string_of(const json& object, const char* key, const std::string& where) {
  const auto found = object.find(key);
  if (found == object.end() || !found->is_string()) {
    refuse(where + "." + key + (found == object.end() ? " is missing" : " is no string"));
  }
  return found->get<std::string>();
}

const json& parameters_of(const json& object, const std::string& where) {
  static const json kNone = json::object();
  const auto found = object.find("parameters");
  if (found == object.end()) {
    return kNone;
  }
  if (!found->is_object()) {
    refuse(where + "parameters: an object was wanted");
  }
  for (const auto& [key, value] : found->items()) {
    if (key.starts_with("shared_memory") || key.starts_with("sequence_") || key == "classification") {
      const bool is_off = value == 0 || value == false || value == json("");
      if (!is_off) {
        refuse(where + "parameters." + std::string(key).append(" is not supported"));
      }
    }
  }
  return *found;
}

std::optional<bool> flag_of(const json& parameters, const char* key, const std::string& where) {
  const auto found = parameters.find(key);
  if (found == parameters.end()) {
    return std::nullopt;
  }
  if (!found->is_boolean()) {
    refuse(where + "parameters." + key + ": true or false was wanted");
  }
  return found->get<bool>();
}

std::vector<std::int64_t> shape_of(const json& input, const std::string& where) {
  const auto found = input.find("shape");
  if (found == input.end() || !found->is_array() || found->size() > kMostDims) {
    refuse(where + ".shape: a list of at most " + std::to_string(kMostDims) + " sizes was wanted");
  }
  std::vector<std::int64_t> shape;
  std::int64_t elements = 1; // as if sizes of 0 were 1, so that strides can be computed, too
  for (const json& size : *found) {
    if (!size.is_number_unsigned() || !std::in_range<std::int64_t>(size.get<std::uint64_t>())) {
      refuse(where + ".shape: " + dump(size) + " is no size");
    }
    shape.push_back(size.get<std::int64_t>());
    if (__builtin_mul_overflow(elements, std::max<std::int64_t>(shape.back(), 1), &elements) ||
        elements > (std::int64_t{1} << 48)) {
      refuse(where + ".shape has more elements than any memory holds");
    }
  }
  return shape;
}

Datatype datatype_of(const std::string& name, const std::string& where) {
  const auto* found = std::find_if(kDatatypes.begin(), kDatatypes.end(),
                                   [&](const NamedDatatype& known) { return name == known.name; });
  if (found == kDatatypes.end()) {
    std::string names;
    for (const NamedDatatype& known : kDatatypes) {
      names += std::string(names.empty() ? "" : ", ") + known.name;
    }
    refuse(where + ".datatype is '" + name + "': there are " + names);
  }
  return static_cast<Datatype>(found - kDatatypes.begin());
}

/// The bytes that an input takes of what follows the JSON.
std::string_view take_binary(const json& size, const WireTensor& tensor, std::string_view& rest) {
  if (!size.is_number_unsigned()) {
    refuse("'" + tensor.name + "': parameters.binary_data_size is " + dump(size) + ", and no number of bytes");
  }
  const auto bytes = size.get<std::uint64_t>();
  const std::uint64_t wanted = tensor.elements() * size_of(tensor.datatype);
  if (tensor.datatype != Datatype::bytes && bytes != wanted) {
    refuse("'" + tensor.name + "': " + std::to_string(bytes) + " bytes are given (binary_data_size), and " +
           to_string(tensor.datatype) + " of its shape takes " + std::to_string(wanted));
  }
  if (bytes > rest.size()) {
    refuse("'" + tensor.name + "': it is said to have " + std::to_string(bytes) + " bytes, and " +
           std::to_string(rest.size()) + " are left of the body");
  }
  const std::string_view taken = rest.substr(0, bytes);
  rest.remove_prefix(bytes);
  return taken;
}

WireTensor parse_input(const json& input, const std::vector<JsonValue>& data, const std::string& where,
                       std::string_view& rest) {
  WireTensor tensor;
  tensor.name = string_of(input, "name", where);
  tensor.datatype = datatype_of(string_of(input, "datatype", where), where);
  tensor.shape = shape_of(input, where);
  const json& parameters = parameters_of(input, where + ".");
  const auto size = parameters.find("binary_data_size");
  const bool has_data = input.contains("data");
  if (has_data == (size != parameters.end())) {
    refuse("'" + tensor.name + "': " + (has_data ? "both" : "neither") + " data and parameters.binary_data_size " +
           (has_data ? "are" : "is") + " given: one of them was wanted");
  }
  if (has_data) {
    fill_from_json(tensor, data);
    return tensor;
  }
  tensor.binary = take_binary(*size, tensor, rest);
  if (tensor.datatype == Datatype::bytes) {
    split_strings(tensor);
  } else if (tensor.datatype == Datatype::boolean &&
             !std::all_of(tensor.binary.begin(), tensor.binary.end(), [](char c) { return c == 0 || c == 1; })) {
    refuse("'" + tensor.name + "': a byte of BOOL is 0 or 1, and some are not");
  }
  return tensor;
}

std::size_t json_bytes_of(std::string_view body, const std::optional<std::string>& text) {
  if (!text) {
    return body.size();
  }
  std::uint64_t bytes = 0;
  const auto [end, error] = std::from_chars(text->data(), text->data() + text->size(), bytes);
  if (error != std::errc() || end != text->data() + text->size()) {
    refuse("Inference-Header-Content-Length is '" + *text + "', and no number of bytes");
  }
  if (bytes > body.size()) {
    refuse("Inference-Header-Content-Length is " + *text + ", and the body has " + std::to_string(body.size()) +
           " bytes");
  }
  return bytes;
}

/// A list of objects, or none.
const json& list_of(const json& object, const char* key) {
  static const json kNone = json::array();
  const auto found = object.find(key);
  if (found == object.end()) {
    return kNone;
  }
  if (!found->is_array() || found->size() > kMostTensors ||
      !std::all_of(found->begin(), found->end(), [](const json& element) { return element.is_object(); })) {
    refuse(std::string(key) + ": a list of at most " + std::to_string(kMostTensors) + " objects was wanted");
  }
  return *found;
}

} // namespace

const char* to_string(Datatype datatype) { return kDatatypes.at(static_cast<std::size_t>(datatype)).name; }
std::size_t size_of(Datatype datatype) { return kDatatypes.at(static_cast<std::size_t>(datatype)).bytes; }

std::uint64_t WireTensor::elements() const {
  std::uint64_t count = 1;
  for (const std::int64_t size : shape) {
    count *= static_cast<std::uint64_t>(size);
  }
  return count;
}

InferRequest parse_infer_request(std::string_view body, const std::optional<std::string>& json_bytes) {
  const std::size_t bytes = json_bytes_of(body, json_bytes);
  const Header header = parse_header(body.substr(0, bytes));
  std::string_view rest = body.substr(bytes);
  InferRequest request;
  if (header.rest.contains("id")) {
    request.id = string_of(header.rest, "id", "the request");
  }
  request.binary = flag_of(parameters_of(header.rest, ""), "binary_data_output", "").value_or(false);
  std::set<std::string> names;
  for (const json& input : list_of(header.rest, "inputs")) {
    const std::string where = "inputs[" + std::to_string(request.inputs.size()) + "]";
    request.inputs.push_back(parse_input(input, header.data.at(request.inputs.size()), where, rest));
    if (!names.insert(request.inputs.back().name).second) {
      refuse("inputs: '" + request.inputs.back().name + "' is given twice");
    }
  }
  if (!rest.empty()) {
    refuse("the body has " + std::to_string(rest.size()) + " bytes more than its inputs take (binary_data_size)");
  }
  std::set<std::string> wanted;
  for (const json& output : list_of(header.rest, "outputs")) {
    const std::string where = "outputs[" + std::to_string(request.outputs.size()) + "]";
    const json& parameters = parameters_of(output, where + ".");
    request.outputs.push_back({string_of(output, "name", where), flag_of(parameters, "binary_data", where + ".")});
    if (!wanted.insert(request.outputs.back().name).second) { // its bytes would go as often
      refuse("outputs: '" + request.outputs.back().name + "' is asked for twice");
    }
  }
  return request;
}

} // namespace offload::tools
