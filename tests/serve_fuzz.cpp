// For libFuzzer: what reads requests of clients, fed with anything. It gives a request, or a RequestError that is JSON
// in turn, in memory bounded by the body; nothing else. What it has understood has to be of one piece.
//
// usage: serve_fuzz CORPUS [-max_total_time=SECONDS]     the corpus: tests/serve_corpus
// An input is the header field Inference-Header-Content-Length, or nothing, a new line, and the body.

#include <tools/serve_protocol.h>

#include <cstdlib>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>

namespace offload::tools {
namespace {

void require(bool good) {
  if (!good) {
    std::abort();
  }
}

/// Its inputs as outputs: an answer with bytes that is the request again.
void answer(const InferRequest& request) {
  InferAnswer outputs{"m", request.id, request.inputs};
  InferRequest wanted;
  wanted.binary = true;
  const WireAnswer written = write_infer_answer(outputs, wanted);
  std::string body = written.body.substr(0, written.json_bytes.value_or(written.body.size()));
  const auto json = nlohmann::json::parse(body);
  require(json.at("outputs").size() == request.inputs.size());
  try {
    write_infer_answer(outputs, request);
  } catch (const RequestError& error) {
    require(nlohmann::json::accept(error_body(error.what())));
  }
}

void read(std::string_view text) {
  const std::size_t end = text.find('\n');
  if (end == std::string_view::npos) {
    return;
  }
  const std::optional<std::string> length = end == 0 ? std::nullopt : std::optional(std::string(text.substr(0, end)));
  const std::string body(text.substr(end + 1));
  try {
    const InferRequest request = parse_infer_request(body, length);
    for (const WireTensor& input : request.inputs) {
      require(input.datatype == Datatype::bytes ? input.strings.size() == input.elements()
                                                : input.bytes().size() == input.elements() * size_of(input.datatype));
    }
    answer(request);
  } catch (const RequestError& error) {
    require(error.status() == 400 && nlohmann::json::accept(error_body(error.what())));
  }
}

} // namespace
} // namespace offload::tools

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t bytes) {
  offload::tools::read({reinterpret_cast<const char*>(data), bytes});
  return 0;
}
