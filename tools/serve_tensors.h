#pragma once

// Tensors and other values of TorchScript, to and from what is sent. Any thread may call any of these.

#include <ATen/core/function_schema.h>
#include <ATen/core/ivalue.h>
#include <c10/core/Device.h>

#include <string>
#include <vector>

#include <tools/serve_protocol.h>

namespace offload::tools {

std::optional<Datatype> datatype_of(at::ScalarType type); ///< none of complex and quantised numbers

/// The arguments of a call of `schema`, of which the first is the module: tensors are copies on `device`.
///
/// An argument is an input of its name; where it takes several values, each has its own: `x.0`, `x.1` of a list or
/// tuple, `x.key` of a dict. Numbers come as tensors of one element, lists of numbers as tensors of one dimension,
/// strings as BYTES. What is Optional, or has a default, may be left out. Throws RequestError that names the input.
std::vector<c10::IValue> arguments_of(const c10::FunctionSchema& schema, const std::vector<WireTensor>& inputs,
                                      c10::Device device);

/// Throws InputError for an argument that no inputs can give.
void require_servable(const c10::FunctionSchema& schema);

/// What a call has returned, on the host. A value is `output_0`; those of a tuple or list `output_0`, `output_1`,
/// unless a named tuple or a dict names them; within these, the names are joined by dots. None is left out. Waits for
/// the device. Throws RequestError, with status 500, for what can not be sent.
std::vector<WireTensor> outputs_of(const c10::IValue& value);

} // namespace offload::tools
