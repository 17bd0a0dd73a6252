#pragma once

// How errors cross between C++ and Python, and how C++ is entered from Python without its interpreter's lock.
//
// Everything here is called by threads that hold the lock (the GIL), unless it is said otherwise.

#include <torch/csrc/Exceptions.h>
#include <torch/csrc/utils/pybind.h>

#include <memory>
#include <stdexcept>
#include <utility>

namespace offload::python {

/// What Python code has raised while C++ called it. Any thread may hold, copy and end it, and ask what it says.
class RaisedError : public std::runtime_error {
 public:
  explicit RaisedError(pybind11::error_already_set error);

  /// Raises it again.
  void restore() const;

 private:
  std::shared_ptr<const pybind11::error_already_set> error_;
};

/// Raises what is being handled, if it is of this library or a RaisedError, as Python's exception. Otherwise throws it
/// again.
[[noreturn]] void raise_ours();

/// What `function` returns. Errors of this library come as torch_offload's, all others as those of torch do; warnings
/// of torch become warnings of Python.
template <typename Function>
auto call_guarded(const Function& function) {
  HANDLE_TH_ERRORS
  try {
    return function();
  } catch (...) {
    raise_ours();
  }
  END_HANDLE_TH_ERRORS_PYBIND
}

/// The same, while other threads of Python run: `function` must not use what belongs to Python.
template <typename Function>
auto call_released(const Function& function) {
  return call_guarded([&] {
    const pybind11::gil_scoped_release released;
    return function();
  });
}

} // namespace offload::python
