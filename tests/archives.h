#pragma once

#include <filesystem>
#include <set>
#include <string>
#include <vector>

#include <offload/error.h>
#include <offload/options.h>
#include <tools/inputs.h>

namespace offload::test {

using Call = std::vector<c10::IValue>;

/// Archives of these folders that have a NAME.inputs.pt beside them, as models/export.py writes them. Throws InputError
/// when there are none.
inline std::vector<std::filesystem::path> models_in(const std::vector<std::string>& folders) {
  std::vector<std::filesystem::path> models;
  for (const std::string& folder : folders) {
    std::set<std::filesystem::path> found;
    for (const auto& entry : std::filesystem::directory_iterator(folder)) {
      auto inputs = entry.path();
      if (entry.path().extension() == ".pt" && std::filesystem::exists(inputs.replace_extension(".inputs.pt"))) {
        found.insert(entry.path());
      }
    }
    models.insert(models.end(), found.begin(), found.end());
  }
  if (models.empty()) {
    throw InputError("no models with inputs in the folders");
  }
  return models;
}

/// Of calls of `forward`, those that differ in the sizes of their tensors.
inline std::vector<ExampleCall> examples(const std::vector<Call>& calls) {
  std::vector<ExampleCall> examples;
  std::set<std::string> seen;
  for (const Call& call : calls) {
    std::string sizes;
    for (const c10::IValue& input : call) {
      sizes += input.isTensor() ? c10::str(input.toTensor().sizes()) : input.tagKind();
    }
    if (seen.insert(sizes).second) {
      examples.push_back({"forward", call, {}});
    }
  }
  return examples;
}

} // namespace offload::test
