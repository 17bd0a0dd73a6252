#pragma once

#include <ATen/core/ivalue.h>
#include <c10/core/Device.h>

#include <cstddef>
#include <string>
#include <vector>

#include <offload/graph/program.h>
#include <offload/options.h>

namespace offload {

/// A call that somebody wants.
struct Request {
  std::string method;
  std::vector<c10::IValue> stack; ///< what its graph takes: the module, then the arguments, with defaults
  std::size_t shape; ///< as a hash: calls that may take different activations, or different branches, differ in it
};

/// Throws InputError that names the argument, or that lists the methods there are.
Request make_request(const Program& program, c10::Device device, const std::string& method,
                     std::vector<c10::IValue> inputs, const Kwargs& kwargs);

/// The method of that name. Throws InputError, which lists those there are.
const LoweredMethod& find_method(const Program& program, const std::string& name);

} // namespace offload
