#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <memory>

namespace offload::python {

/// Options::progress that calls a function of Python, on whatever thread it is told. What that raises is thrown as
/// RaisedError. On the main thread it also has Python look at signals: Ctrl-C is thrown, too, though there is no
/// function. Copies share the function. It may be called, copied and ended with and without Python's lock.
class Progress {
 public:
  /// `function` may be None. The caller has Python's lock.
  explicit Progress(const pybind11::object& function);

  void operator()(std::uint64_t done, std::uint64_t total) const;

 private:
  std::shared_ptr<const pybind11::object> function_;
};

/// From now on nobody is told, and who has been told has come back. The caller has Python's lock, and Python ends.
void end_progress();

} // namespace offload::python
