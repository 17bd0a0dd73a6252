#pragma once

// What a server and its clients send each other: version 2 of the Open Inference Protocol over HTTP, with its extension
// for binary tensors. This part knows neither LibTorch nor HTTP: bytes come in, plain structs go out, and the other way
// round. Everything here is a function of its arguments; any thread may call any of them.
//
// A body is JSON, and after it, where a header field says how long the JSON is, the bytes of tensors in the order of
// the JSON: little-endian, the last dimension first. Whatever comes is refused or understood as a whole.

#include <cstdint>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <offload/error.h>

namespace offload::tools {

/// What a client is told instead of an answer. Statuses are those of HTTP: 400 when the request is wrong, 404, 413,
/// 503.
class RequestError : public Error {
 public:
  RequestError(int status, const std::string& what) : Error(what), status_(status) {}
  int status() const { return status_; }

 private:
  int status_;
};

enum class Datatype {
  boolean,
  uint8,
  uint16,
  uint32,
  uint64,
  int8,
  int16,
  int32,
  int64,
  fp16,
  bf16,
  fp32,
  fp64,
  bytes, ///< strings; each is preceded by its length, of four bytes
};

const char* to_string(Datatype datatype); ///< "FP32"
std::size_t size_of(Datatype datatype);   ///< bytes of an element; 0 of strings

/// An input of a request, or an output of an answer.
struct WireTensor {
  std::string name;
  Datatype datatype = Datatype::fp32;
  std::vector<std::int64_t> shape;
  std::string_view binary; ///< the elements where they came as bytes: a part of the body, or of what `holder` has
  std::shared_ptr<const void> holder;
  std::string owned;                ///< the elements where they came as JSON
  std::vector<std::string> strings; ///< the elements of Datatype::bytes

  std::string_view bytes() const { return owned.empty() ? binary : std::string_view(owned); }
  std::uint64_t elements() const; ///< of its shape
};

struct WantedOutput {
  std::string name;
  std::optional<bool> binary; ///< by default as the request says for all
};

struct InferRequest {
  std::string id;
  std::vector<WireTensor> inputs;
  std::vector<WantedOutput> outputs; ///< empty: all
  bool binary = false;               ///< outputs go as bytes unless they say otherwise
};

/// Reads a body, which has to live as long as the request. `json_bytes` is what the header field
/// Inference-Header-Content-Length says; without it all is JSON. Throws RequestError that names what is wrong, what was
/// wanted, and the input that it is about.
InferRequest parse_infer_request(std::string_view body, const std::optional<std::string>& json_bytes);

struct InferAnswer {
  std::string model;
  std::string id;
  std::vector<WireTensor> outputs;
};

struct WireAnswer {
  std::string body;
  std::optional<std::size_t> json_bytes; ///< where tensors follow the JSON
};

/// The outputs that `request` wants, in its order. Throws RequestError for one that there is not, and for one that JSON
/// can not carry: 16-bit floats, and numbers that are not finite.
WireAnswer write_infer_answer(const InferAnswer& answer, const InferRequest& request);

/// {"error": what}, whatever bytes that has.
std::string error_body(std::string_view what);

/// As JSON; bytes that are no UTF-8 are replaced.
std::string dump(const nlohmann::json& json);

} // namespace offload::tools
