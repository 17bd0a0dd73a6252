#pragma once

#include <map>
#include <string>
#include <vector>

#include <offload/graph/lowered_method.h>
#include <offload/graph/weights.h>
#include <offload/placement.h>

namespace offload {

/// A module seen as weights and the methods that read them. Copies share its tensors and its code.
struct Program {
  ModuleWeights weights;
  std::vector<std::string> stays_because; ///< by weight; empty for those that are planned
  std::vector<std::vector<Use>> uses;     ///< by weight: the operators that read it
  std::map<std::string, LoweredMethod> methods;
  std::vector<std::string> rewritten; ///< what was changed in graphs for the device
  std::vector<std::string> unseen;    ///< classes of objects that only their own code sees into
  bool writes_state = false;          ///< some method changes attributes of the module, or constants of its graph
  Holders holders;                    ///< of the weights: the module, and what holds the constants of its graphs

  /// From now on methods lease the weights that are not `resident`, and find the others as they stand in the holders,
  /// where `replace(tensor)` comes in the place of every tensor. No method runs meanwhile.
  void rebind(const std::vector<bool>& resident, const Replace& replace);

  /// The same, but no method can be run until the next rebind().
  void unbind(const Replace& replace);

  /// Puts `replace(tensor)` in the place of large constants in the code that the module came with, and that others of
  /// its type run; `methods` have theirs in the holders.
  void replace_constants(const Replace& replace);
};

} // namespace offload
