#pragma once

#include <ATen/core/ivalue.h>
#include <c10/core/Device.h>

#include <cstddef>
#include <string>
#include <vector>

#include <offload/graph/program.h>
#include <offload/options.h>

namespace offload {

/// The method of that name. Throws InputError, which lists those there are.
const LoweredMethod& find_method(const Program& program, const std::string& name);

/// What the graph of a method takes: the module, then its arguments, with defaults for those that are not given. Throws
/// InputError that names the argument.
std::vector<c10::IValue> make_stack(const Program& program, const LoweredMethod& method, c10::Device device,
                                    std::vector<c10::IValue> inputs, const Kwargs& kwargs);

/// The shape of a call, as a hash: calls that may take different activations, or different branches, differ in it.
/// `stack` begins with the module, which is the same for all calls.
std::size_t shape_of_call(const std::string& method, const std::vector<c10::IValue>& stack);

} // namespace offload
