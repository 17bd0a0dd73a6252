#pragma once

// A program that links scarce.cpp can be refused host memory: its operator new stands before that of all libraries.

namespace offload::test {

/// Refuses this thread, or all others together, allocation number `allocations` from here on, counted from 0, and all
/// after it, or `once`: that one alone. For as long as this lives.
class Scarce {
 public:
  enum class Whose { mine, others };

  explicit Scarce(int allocations, bool once = false, Whose whose = Whose::mine);
  ~Scarce();
  Scarce(const Scarce&) = delete;
  Scarce& operator=(const Scarce&) = delete;

  /// True when one was refused.
  static bool ran_out();
};

} // namespace offload::test
