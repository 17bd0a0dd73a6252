#include <offload/graph/program.h>

#include <torch/csrc/jit/api/module.h>

#include <offload/graph/constants.h>
#include <offload/graph/lower.h>
#include <offload/graph/method_code.h>

namespace offload {

void Program::rebind(const std::vector<bool>& resident, const Replace& replace) {
  replace_tensors(holders, replace);
  for (auto& [name, method] : methods) {
    method.code->placed.emplace(place_weights(*method.code->lowered, resident), name);
  }
}

void Program::unbind(const Replace& replace) {
  replace_tensors(holders, replace);
  for (auto& [name, method] : methods) {
    method.code->placed.reset();
  }
}

void Program::replace_constants(const Replace& replace) {
  replace_large_constants(holders.front().toModule(), replace);
}

} // namespace offload
