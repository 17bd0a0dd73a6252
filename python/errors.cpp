#include <python/errors.h>

#include <string>

#include <offload/error.h>

namespace offload::python {

namespace py = pybind11;

RaisedError::RaisedError(py::error_already_set error)
    : std::runtime_error(error.what()),
      error_(new py::error_already_set(std::move(error)), [](const py::error_already_set* last) {
        if (Py_IsFinalizing() == 0) { // else it is left: nobody may have the lock any more
          const py::gil_scoped_acquire lock;
          delete last;
        }
      }) {}

void RaisedError::restore() const {
  PyErr_Restore(error_->type().inc_ref().ptr(), error_->value().inc_ref().ptr(), error_->trace().inc_ref().ptr());
}

namespace {

/// `arguments` are those of the exception's class.
template <typename... Arguments>
[[noreturn]] void raise(const char* name, const Arguments&... arguments) {
  const py::object type = py::module_::import("torch_offload._errors").attr(name);
  const py::object error = type(arguments...);
  PyErr_SetObject(type.ptr(), error.ptr());
  throw py::error_already_set();
}

/// Messages may hold bytes of a file that are no UTF-8.
py::str text_of(const std::exception& error) {
  const std::string what = error.what();
  PyObject* text = PyUnicode_DecodeUTF8(what.data(), static_cast<Py_ssize_t>(what.size()), "backslashreplace");
  if (!text) {
    throw py::error_already_set();
  }
  return py::reinterpret_steal<py::str>(text);
}

} // namespace

void raise_ours() {
  try {
    throw;
  } catch (const BudgetError& error) {
    raise("BudgetError", text_of(error), error.minimum_bytes());
  } catch (const ArchiveError& error) {
    raise("ArchiveError", text_of(error));
  } catch (const InputError& error) {
    raise("InputError", text_of(error));
  } catch (const Error& error) {
    raise("Error", text_of(error));
  } catch (const RaisedError& error) {
    error.restore();
    throw py::error_already_set();
  }
}

} // namespace offload::python
