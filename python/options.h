#pragma once

// What Python gives, as the library takes it: options, sizes, and the arguments of calls.

#include <ATen/core/function_schema.h>
#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/utils/pybind.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include <offload/options.h>
#include <offload/pool.h>

namespace offload::python {

/// Of an int, or of a str as in "8GiB". None: none. Raises TypeError or InputError that names `option`.
std::optional<std::uint64_t> bytes_of(pybind11::handle value, const char* option);

/// Options by their names, without example calls. `progress` is a callable, or None; either way signals are looked at
/// where progress is told to the main thread, so that Ctrl-C ends a load.
Options options_of(const pybind11::dict& given, const pybind11::object& progress);

/// Calls as (method, args, kwargs), by the signatures that `module` has. Raises InputError that names the call.
std::vector<ExampleCall> examples_of(const pybind11::list& calls, const torch::jit::Module& module);

PoolOptions pool_options_of(const pybind11::dict& given);

/// The arguments of a call, in the order of `schema` and with its defaults, without `self`. Values are converted as
/// TorchScript does it. Raises InputError with the signature.
std::vector<c10::IValue> inputs_of(const c10::FunctionSchema& schema, const pybind11::tuple& args,
                                   const pybind11::dict& kwargs);

} // namespace offload::python
