#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

#include <offload/export.h>

namespace offload {

/// What this library throws. Exceptions that a model raises itself, and errors of its operators, pass through
/// unchanged. Messages may contain names from a file or a model: their control characters are written as \xNN.
class OFFLOAD_API Error : public std::runtime_error {
 public:
  explicit Error(const std::string& what);
};

/// The model does not run in the budget that was given.
class OFFLOAD_API BudgetError : public Error {
 public:
  BudgetError(const std::string& what, std::uint64_t minimum_bytes) : Error(what), minimum_bytes_(minimum_bytes) {}

  /// The smallest `vram_budget` that would do. It is a lower bound where activations have not been measured to their
  /// end; the message says so then.
  std::uint64_t minimum_bytes() const { return minimum_bytes_; }

 private:
  std::uint64_t minimum_bytes_;
};

/// The file is not a TorchScript archive that can be run, or cannot be read.
class OFFLOAD_API ArchiveError : public Error {
 public:
  using Error::Error;
};

/// An argument is not what it must be: the message names it, what was wanted, and what there is.
class OFFLOAD_API InputError : public Error {
 public:
  using Error::Error;
};

} // namespace offload
