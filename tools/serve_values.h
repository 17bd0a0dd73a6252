#pragma once

// The numbers and strings of a tensor as JSON has them, and as bytes.

#include <cstdint>
#include <memory>
#include <string>
#include <variant>
#include <vector>

#include <tools/serve_protocol.h>

namespace offload::tools {

/// An element of "data", as JSON knows it: small, since bodies may hold millions.
using JsonText = std::unique_ptr<const std::string>;
using JsonValue = std::variant<bool, std::int64_t, std::uint64_t, double, JsonText>;

/// Fills `tensor.owned`, or `tensor.strings`, with `values`, of which there have to be as many as its shape takes.
/// Throws RequestError that names the tensor and the first value that its datatype can not hold.
void fill_from_json(WireTensor& tensor, const std::vector<JsonValue>& values);

/// Fills `tensor.strings` from `tensor.binary`. Throws RequestError where lengths and bytes contradict each other.
void split_strings(WireTensor& tensor);

/// The other way round: what `strings` are as bytes.
std::string join_strings(const std::vector<std::string>& strings);

/// Appends the elements as a flat JSON array. Throws RequestError for what JSON can not carry.
void append_json_array(std::string& text, const WireTensor& tensor);

} // namespace offload::tools
