#pragma once

#include <cstdint>
#include <vector>

#include <offload/runtime/model.h>

#include "weight_tables.h"

namespace offload::test {

/// A model of weights of so many bytes, without methods.
inline Model model_of(const std::vector<std::uint64_t>& bytes, c10::Device device) {
  Model model;
  model.device = device;
  model.machine = {"a machine", 24000, 10, 12000, 2000, 1e6, 1e6, 3e7, 1e8, 4.5};
  model.weights = shared_table(bytes);
  model.program.uses.resize(bytes.size());
  return model;
}

} // namespace offload::test
