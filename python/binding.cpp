#include <python/bindings.h>
#include <python/errors.h>
#include <python/options.h>
#include <python/progress.h>

#include <offload/bytes.h>
#include <offload/version.h>

// The name of its function is the macro's to choose.
// NOLINTNEXTLINE(readability-identifier-naming,modernize-use-trailing-return-type)
PYBIND11_MODULE(_C, module) {
  using namespace offload::python;
  namespace py = pybind11;
  module.doc() = "The compiled part of torch_offload.";
  module.attr("version") = offload::version();
  bind_records(module);
  bind_pool(module);
  bind_module(module);
  py::module_::import("atexit").attr("register")(py::cpp_function(&end_progress));
  module.def("parse_bytes",
             [](const py::object& size) { return call_guarded([&] { return bytes_of(size, "size"); }); });
  module.def("format_bytes", &offload::format_bytes);
}
