#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <offload/error.h>
#include <offload/pool.h>
#include <offload/priority.h>
#include <python/bindings.h>
#include <python/errors.h>
#include <python/options.h>

namespace offload::python {

namespace py = pybind11;

namespace {

/// The last owner of a pool may be Python, which has its lock then, or a module's options, without it.
void end_pool(const Pool* pool) {
  if (PyGILState_Check() != 0) {
    const py::gil_scoped_release released;
    delete pool;
  } else {
    delete pool;
  }
}

std::shared_ptr<Pool> make_pool(const py::kwargs& given) {
  const PoolOptions options = call_guarded([&] { return pool_options_of(given); });
  return call_released([&] { return std::shared_ptr<Pool>(new Pool(options), end_pool); });
}

Priority priority_of(const std::string& name) {
  if (name == "low") {
    return Priority::low;
  }
  if (name == "normal") {
    return Priority::normal;
  }
  if (name == "high") {
    return Priority::high;
  }
  throw InputError("'" + name + "' is no priority: give 'low', 'normal' or 'high'");
}

/// A PriorityGuard that Python begins and ends.
class PriorityScope {
 public:
  explicit PriorityScope(const std::string& priority)
      : priority_(call_guarded([&] { return priority_of(priority); })) {}

  void enter() {
    call_guarded([&] {
      if (guard_) {
        throw Error("this priority has begun already: make another for each `with`");
      }
      guard_.emplace(priority_);
    });
  }
  void exit() { guard_.reset(); }

 private:
  const Priority priority_;
  std::optional<PriorityGuard> guard_;
};

} // namespace

void bind_pool(py::module_& module) {
  py::class_<Pool, std::shared_ptr<Pool>>(module, "Pool")
      .def(py::init(&make_pool))
      .def_property_readonly("device",
                             [](const Pool& pool) { return py::cast(call_released([&] { return pool.device(); })); })
      .def_property_readonly("vram_budget",
                             [](const Pool& pool) { return call_released([&] { return pool.vram_budget(); }); })
      .def("set_vram_budget",
           [](Pool& pool, const py::object& size) {
             const auto bytes = call_guarded([&] { return bytes_of(size, "vram_budget"); });
             if (!bytes) {
               throw py::type_error("vram_budget: an int, or a str as in '8GiB', is wanted, and this is None");
             }
             call_released([&] { pool.set_vram_budget(*bytes); });
           })
      .def("entries",
           [](const Pool& pool) {
             py::list list;
             for (const PoolEntry& entry : call_released([&] { return pool.entries(); })) {
               list.append(py::cast(entry));
             }
             return list;
           })
      .def_property_readonly("stats", [](const Pool& pool) { return call_released([&] { return pool.stats(); }); });
  py::class_<PriorityScope>(module, "Priority")
      .def(py::init<const std::string&>())
      .def("__enter__", &PriorityScope::enter)
      .def("__exit__", [](PriorityScope& scope, const py::args& /*raised*/) { scope.exit(); });
}

} // namespace offload::python
