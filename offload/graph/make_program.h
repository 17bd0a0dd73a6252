#pragma once

#include <c10/core/Device.h>
#include <torch/csrc/jit/api/module.h>

#include <offload/graph/program.h>
#include <offload/options.h>

namespace offload {

/// Whether graphs are changed where they name the CPU, on which they were traced: see rewrite_devices().
enum class DeviceConstants { rewrite, keep };

/// Finds the weights of `module`, and lowers all its methods for `device`. The module is not changed yet: its
/// attributes still hold the weights. Throws InputError for one that is empty, or was taken in before.
Program make_program(const torch::jit::Module& module, c10::Device device,
                     DeviceConstants constants = DeviceConstants::rewrite, Gradients gradients = Gradients::off);

} // namespace offload
