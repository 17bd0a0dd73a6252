#pragma once

#include <ATen/Context.h>

#include <string>
#include <vector>

#include <offload/graph/reference.h>
#include <offload/load/archive.h>
#include <tools/compare.h>

#include "archives.h"

namespace offload::test {

/// Operators compute in one order for as long as this lives, where they can.
class Deterministic {
 public:
  Deterministic() { set(true); }
  ~Deterministic() { set(false); }
  Deterministic(const Deterministic&) = delete;
  Deterministic& operator=(const Deterministic&) = delete;

 private:
  static void set(bool deterministic) {
    at::globalContext().setDeterministicCuDNN(deterministic);
    at::globalContext().setDeterministicAlgorithms(deterministic, /*warn_only=*/true);
  }
};

/// Whether the plain model gives the same bits at each of some calls. Atomic additions, as in scatter() and in
/// gradients of convolutions, come in any order. Throws what the model throws, where it can not be run on `device`.
inline bool plain_is_exact(const std::string& path, c10::Device device, const std::vector<Call>& calls) {
  std::vector<Reference> plain;
  for (int i = 0; i < 2; ++i) {
    plain.emplace_back(read_archive(path), device);
  }
  for (int round = 0; round < 4; ++round) {
    for (const Call& call : calls) {
      const c10::IValue first = plain[0].run("forward", call).deepcopy();
      if (!tools::first_difference(plain[1].run("forward", call), first).empty()) {
        return false;
      }
    }
  }
  return true;
}

} // namespace offload::test
