#include <torch/csrc/jit/frontend/tracer.h>
#include <torch/csrc/jit/python/module_python.h>
#include <torch/csrc/jit/python/pybind_utils.h>

#include <optional>
#include <sstream>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include <offload/error.h>
#include <offload/load/archive.h>
#include <offload/module.h>
#include <offload/preview.h>
#include <python/bindings.h>
#include <python/errors.h>
#include <python/options.h>

namespace offload::python {

namespace py = pybind11;

namespace {

/// A module that Python holds. Each member lets other threads of Python run meanwhile, and so does its end, which waits
/// for calls that are under way.
class HeldModule {
 public:
  explicit HeldModule(Module module) : module_(std::move(module)) {}
  ~HeldModule() {
    const py::gil_scoped_release released;
    module_.reset();
  }
  HeldModule(const HeldModule&) = delete;
  HeldModule& operator=(const HeldModule&) = delete;

  py::object run_method(const std::string& name, const py::tuple& args, const py::dict& kwargs) {
    return call_guarded([&] {
      if (torch::jit::tracer::isTracing()) {
        throw InputError(
            "a module of torch_offload can not be traced: trace what calls it without it, or offload the "
            "whole");
      }
      const c10::FunctionSchema& schema = schema_of(name);
      std::vector<c10::IValue> inputs = inputs_of(schema, args, kwargs);
      c10::IValue output = [&] {
        const py::gil_scoped_release released;
        return module_->run_method(name, std::move(inputs));
      }();
      return torch::jit::toPyObject(std::move(output));
    });
  }

  py::object attr(const std::string& name) const {
    return call_guarded([&] {
      c10::IValue value = [&] {
        const py::gil_scoped_release released;
        return module_->attr(name);
      }();
      if (value.isModule()) {
        throw InputError("'" + name + "' is a module within this one: ask for its attributes, as in '" + name +
                         ".weight'");
      }
      return torch::jit::toPyObject(std::move(value));
    });
  }

  std::string schema(const std::string& method) const {
    return call_guarded([&] {
      std::ostringstream out;
      out << schema_of(method);
      return out.str();
    });
  }

  c10::Device device() const {
    return call_released([&] { return module_->device(); });
  }
  py::object placement() const { return placement_of(*module_); }
  Stats stats() const {
    return call_released([&] { return module_->stats(); });
  }
  Report report() const {
    return call_released([&] { return module_->report(); });
  }
  void set_vram_budget(const py::object& size) {
    const auto bytes = call_guarded([&] { return bytes_of(size, "vram_budget"); });
    if (!bytes) {
      throw py::type_error("vram_budget: an int, or a str as in '8GiB', is wanted, and this is None");
    }
    call_released([&] { module_->set_vram_budget(*bytes); });
  }
  void release() {
    call_released([&] { module_->release(); });
  }

 private:
  /// It is asked for once: where many threads call, each time that the lock is let go costs.
  const c10::FunctionSchema& schema_of(const std::string& method) const {
    const auto known = schemas_.find(method);
    if (known != schemas_.end()) {
      return *known->second;
    }
    const c10::FunctionSchema& schema = [&]() -> const c10::FunctionSchema& {
      const py::gil_scoped_release released;
      return module_->schema(method);
    }();
    schemas_.emplace(method, &schema);
    return schema;
  }

  std::optional<Module> module_;                                                // there until the end
  mutable std::unordered_map<std::string, const c10::FunctionSchema*> schemas_; // used with Python's lock only
};

std::unique_ptr<HeldModule> load_module(const std::string& path, const py::dict& given, const py::list& examples,
                                        const py::object& progress) {
  Options options = call_guarded([&] { return options_of(given, progress); });
  if (!examples.empty()) { // what arguments mean is known from the signatures
    const torch::jit::Module signatures = call_released([&] { return read_archive(path, Weights::on_file); });
    options.example_calls = call_guarded([&] { return examples_of(examples, signatures); });
  }
  return std::make_unique<HeldModule>(call_released([&] { return load(path, options); }));
}

std::unique_ptr<HeldModule> wrap_module(const py::object& given_module, const py::dict& given, const py::list& examples,
                                        const py::object& progress) {
  std::optional<torch::jit::Module> module = torch::jit::as_module(given_module);
  if (!module) {
    throw py::type_error("wrap() takes a torch.jit.ScriptModule, and this is " +
                         py::repr(py::type::handle_of(given_module)).cast<std::string>() +
                         ": offload() takes a torch.nn.Module");
  }
  Options options = call_guarded([&] { return options_of(given, progress); });
  options.example_calls = call_guarded([&] { return examples_of(examples, *module); });
  return std::make_unique<HeldModule>(call_released([&] { return wrap(*std::move(module), options); }));
}

} // namespace

void bind_module(py::module_& module) {
  py::class_<HeldModule>(module, "Module")
      .def("run_method", &HeldModule::run_method)
      .def("attr", &HeldModule::attr)
      .def("schema", &HeldModule::schema)
      .def_property_readonly("device", &HeldModule::device)
      .def("placement", &HeldModule::placement)
      .def("stats", &HeldModule::stats)
      .def("report", &HeldModule::report)
      .def("set_vram_budget", &HeldModule::set_vram_budget)
      .def("release", &HeldModule::release);
  module.def("device_of", [](const py::dict& given) {
    return py::cast(call_guarded([&] { return device_of(options_of(given, py::none())); }));
  });
  module.def("load", &load_module);
  module.def("wrap", &wrap_module);
}

} // namespace offload::python
