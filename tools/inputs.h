#pragma once

#include <ATen/core/function_schema.h>
#include <ATen/core/ivalue.h>
#include <c10/core/Device.h>

#include <optional>
#include <string>
#include <vector>

namespace offload::tools {

/// A random tensor described as `dtype[sizes]`, for integers with a bound: `float32[1024,1024]`, `int64[1,128]<30000`.
struct InputSpec {
  at::ScalarType dtype;
  std::vector<std::int64_t> sizes;
  std::int64_t bound = 2; ///< of integers: values are in [0, bound)
};

/// Throws InputError that names `text` and shows an example.
InputSpec parse_input(const std::string& text);

/// The tensor of a description: the same for the same seed on every run.
at::Tensor make_input(const InputSpec& spec, std::uint64_t seed, c10::Device device);

/// Calls from a file that `torch.save` wrote: a list of calls, each a list or tuple of values, or one value. Tensors go
/// to `device`, and lists and dicts become what `schema` declares. Throws InputError when it is something else.
std::vector<std::vector<c10::IValue>> read_inputs(const std::string& path, c10::Device device,
                                                  const c10::FunctionSchema& schema);

/// What decides how much a call takes: "float32[1024,1024]" of a tensor, the kind of any other value.
std::string describe_size(const c10::IValue& value);

/// "forward(Tensor x, int n) -> Tensor", and an example of the options that would call it.
std::string describe_signature(const c10::FunctionSchema& schema);

/// True when the method can be called without any argument.
bool needs_no_inputs(const c10::FunctionSchema& schema);

} // namespace offload::tools
