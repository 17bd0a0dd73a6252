#pragma once

#include <ATen/core/function_schema.h>
#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/runtime/interpreter.h>

#include <map>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include <offload/export.h>
#include <offload/graph/gradients.h>
#include <offload/graph/lower.h>
#include <offload/graph/weights.h>
#include <offload/options.h>
#include <offload/placement.h>

namespace offload {

/// A method whose graph leases its weights.
struct LoweredMethod {
  c10::FunctionSchema schema;
  std::shared_ptr<torch::jit::Graph> graph;
  std::vector<LoweredStep> steps; ///< the static order of its leases
  std::vector<Choice> choices;
  bool takes_constants; ///< after its arguments, the holder of constants

  /// What it runs under: for Gradients::callers, what its caller has set.
  Gradients gradients;
  Differentiates differentiates;
  bool holds_weights; ///< gradients may be on, and backward holds what was saved for it

  /// Throws InputError, saying what to do, for a method that differentiates though gradients are never on.
  void require_gradients() const;

  /// The same for one that did so in a call without gradients, as its error tells.
  void require_gradients(bool enabled, const std::string& error) const;
};

/// A module seen as weights and the nodes that read them.
struct Program {
  ModuleWeights weights;
  std::vector<std::string> stays_because; ///< by weight; empty for those that are planned
  std::vector<std::vector<Use>> uses;     ///< by weight: the operators that read it
  std::map<std::string, LoweredMethod> methods;
  std::vector<std::string> rewritten; ///< what was changed in graphs for the device
  std::vector<std::string> unseen;    ///< classes of objects that only their own code sees into
  bool writes_state = false;          ///< some method changes attributes of the module, or constants of its graph
  Holders holders;                    ///< of the weights: the module, and what holds the constants of its graphs
};

/// Whether graphs are changed where they name the CPU, on which they were traced: see rewrite_devices().
enum class DeviceConstants { rewrite, keep };

/// Finds the weights of `module`, and lowers all its methods for `device`. The module is not changed yet: its
/// attributes still hold the weights.
Program make_program(const torch::jit::Module& module, c10::Device device,
                     DeviceConstants constants = DeviceConstants::rewrite, Gradients gradients = Gradients::off);

/// Runs `code` on this thread, with gradients or without; forks run inline. `stack` holds the module and the arguments.
c10::IValue run_code(const torch::jit::Code& code, std::vector<c10::IValue> stack, bool gradients = false);

/// The reference for every promise of exactness: the same graph, not lowered, run on a module that is wholly on its
/// device. The module that is given is moved there: parameters, buffers and every other tensor.
class OFFLOAD_API Reference {
 public:
  Reference(torch::jit::Module module, c10::Device device, DeviceConstants constants = DeviceConstants::rewrite,
            Gradients gradients = Gradients::off);
  c10::IValue run(const std::string& method, std::vector<c10::IValue> inputs,
                  const std::unordered_map<std::string, c10::IValue>& kwargs = {});

 private:
  at::Tensor moved(const at::Tensor& tensor);

  torch::jit::Module module_;
  std::unordered_map<const void*, std::pair<c10::Storage, c10::Storage>>
      moved_; // from, which is kept for its address, to
  std::map<std::string, std::pair<torch::jit::Code, Gradients>> codes_;
  c10::Device device_;
  DeviceConstants constants_;
  Gradients gradients_;
};

} // namespace offload
