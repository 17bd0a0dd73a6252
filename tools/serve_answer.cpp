#include <tools/serve_protocol.h>
#include <tools/serve_values.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

namespace offload::tools {

namespace {

std::size_t bytes_on_wire(const WireTensor& tensor) {
  std::size_t bytes = tensor.bytes().size();
  if (tensor.datatype == Datatype::bytes) {
    bytes = 0;
    for (const std::string& text : tensor.strings) {
      bytes += sizeof(std::uint32_t) + text.size();
    }
  }
  return bytes;
}

} // namespace

WireAnswer write_infer_answer(const InferAnswer& answer, const InferRequest& request) {
  std::string text = R"({"model_name":)" + dump(answer.model) + R"(,"model_version":"1")";
  if (!answer.id.empty()) {
    text += R"(,"id":)" + dump(answer.id);
  }
  text += R"(,"outputs":[)";
  std::vector<WantedOutput> wanted = request.outputs;
  if (wanted.empty()) {
    for (const WireTensor& output : answer.outputs) {
      wanted.push_back({output.name, std::nullopt});
    }
  }
  WireAnswer written;
  std::vector<const WireTensor*> tail; // copied once: they may be large
  std::size_t tail_bytes = 0;
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    const auto found = std::find_if(answer.outputs.begin(), answer.outputs.end(),
                                    [&](const WireTensor& output) { return output.name == wanted[i].name; });
    if (found == answer.outputs.end()) {
      std::string names;
      for (const WireTensor& output : answer.outputs) {
        names += (names.empty() ? "" : ", ") + output.name;
      }
      throw RequestError(400, "outputs: there is no '" + wanted[i].name + "'; there are " + names);
    }
    text += std::string(i > 0 ? "," : "") + R"({"name":)" + dump(found->name) + R"(,"datatype":")" +
            to_string(found->datatype) + R"(","shape":)" + dump(found->shape);
    if (wanted[i].binary.value_or(request.binary)) {
      const std::size_t bytes = bytes_on_wire(*found);
      text += R"(,"parameters":{"binary_data_size":)" + std::to_string(bytes) + "}}";
      tail.push_back(&*found);
      tail_bytes += bytes;
    } else {
      text += R"(,"data":)";
      append_json_array(text, *found);
      text += '}';
    }
  }
  text += "]}";
  if (!tail.empty()) {
    written.json_bytes = text.size();
    text.reserve(text.size() + tail_bytes);
    for (const WireTensor* output : tail) {
      if (output->datatype == Datatype::bytes) {
        text += join_strings(output->strings);
      } else {
        text += output->bytes();
      }
    }
  }
  written.body = std::move(text);
  return written;
}

std::string error_body(std::string_view what) { return dump(nlohmann::json{{"error", what}}); }

std::string dump(const nlohmann::json& json) {
  return json.dump(-1, ' ', /*ensure_ascii=*/false, nlohmann::json::error_handler_t::replace);
}

} // namespace offload::tools
