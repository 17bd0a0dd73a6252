#include <python/progress.h>

#include <python/errors.h>

namespace offload::python {

namespace py = pybind11;

Progress::Progress(const py::object& function)
    : function_(new py::object(function), [](const py::object* last) {
        if (Py_IsFinalizing() == 0) { // else it is left: nobody may have the lock any more
          const py::gil_scoped_acquire lock;
          delete last;
        }
      }) {}

void Progress::operator()(std::uint64_t done, std::uint64_t total) const {
  if (Py_IsFinalizing() != 0) {
    return;
  }
  const py::gil_scoped_acquire lock;
  try {
    if (PyErr_CheckSignals() != 0) {
      throw py::error_already_set();
    }
    if (!function_->is_none()) {
      (*function_)(done, total);
    }
  } catch (py::error_already_set& error) {
    throw RaisedError(std::move(error));
  }
}

} // namespace offload::python
