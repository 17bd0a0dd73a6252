#include <python/options.h>

#include <torch/csrc/jit/python/pybind_utils.h>

#include <array>
#include <functional>
#include <utility>

#include <offload/bytes.h>
#include <offload/error.h>
#include <python/errors.h>
#include <python/progress.h>

namespace offload::python {

namespace py = pybind11;

namespace {

[[noreturn]] void refuse_type(const char* option, const char* wanted, py::handle value) {
  throw py::type_error(std::string(option) + ": " + wanted + " is wanted, and this is " +
                       py::repr(py::type::handle_of(value)).cast<std::string>());
}

bool is_int(py::handle value) { return PyLong_Check(value.ptr()) != 0 && PyBool_Check(value.ptr()) == 0; }

std::string text_of(py::handle value, const char* option) {
  if (!py::isinstance<py::str>(value)) {
    refuse_type(option, "a str", value);
  }
  return value.cast<std::string>();
}

bool flag_of(py::handle value, const char* option) {
  if (!py::isinstance<py::bool_>(value)) {
    refuse_type(option, "True or False", value);
  }
  return value.cast<bool>();
}

int count_of(py::handle value, const char* option) {
  if (!is_int(value)) {
    refuse_type(option, "an int", value);
  }
  try {
    return value.cast<int>();
  } catch (const py::cast_error&) {
    throw InputError(std::string(option) + ": " + py::repr(value).cast<std::string>() + " is no such number");
  }
}

double weight_of(py::handle value) {
  if (!is_int(value) && !py::isinstance<py::float_>(value)) {
    refuse_type("weight", "a number", value);
  }
  return value.cast<double>();
}

c10::Device device_of_python(py::handle value) {
  try {
    return py::module_::import("torch").attr("device")(value).cast<c10::Device>();
  } catch (const py::error_already_set& error) {
    throw InputError("device: " + py::repr(value).cast<std::string>() +
                     " is no device: give 'cuda:0', 'cpu' or a torch.device");
  }
}

/// One of `values`, by its name.
template <typename Value, std::size_t Count>
Value choice_of(py::handle value, const char* option, const std::array<std::pair<const char*, Value>, Count>& values) {
  const std::string given = text_of(value, option);
  std::string names;
  for (const auto& [name, meant] : values) {
    if (given == name) {
      return meant;
    }
    names += (names.empty() ? "'" : "', '") + std::string(name);
  }
  throw InputError(std::string(option) + ": '" + given + "' is not one of " + names + "'");
}

constexpr std::array<std::pair<const char*, Gradients>, 2> kGradients = {
    {{"off", Gradients::off}, {"callers", Gradients::callers}}};
constexpr std::array<std::pair<const char*, Numerics>, 3> kNumerics = {
    {{"exact", Numerics::exact}, {"rounding", Numerics::rounding}, {"lossy", Numerics::lossy}}};

Rule rule_of(py::handle value) {
  std::array<std::pair<const char*, Rule>, kRules.size()> rules;
  std::transform(kRules.begin(), kRules.end(), rules.begin(),
                 [](Rule rule) { return std::pair(to_string(rule), rule); });
  return choice_of(value, "rule", rules);
}

template <typename Meant>
struct Setting {
  const char* name;
  std::function<void(Meant& options, py::handle value)> set;
};

const std::vector<Setting<Options>>& settings() {
  static const std::vector<Setting<Options>> kSettings = {
      {"pool",
       [](Options& to, py::handle value) {
         if (!py::isinstance<Pool>(value)) {
           refuse_type("pool", "a Pool", value);
         }
         to.pool = value.cast<std::shared_ptr<Pool>>();
       }},
      {"weight", [](Options& to, py::handle value) { to.weight = weight_of(value); }},
      {"device", [](Options& to, py::handle value) { to.device = device_of_python(value); }},
      {"vram_budget", [](Options& to, py::handle value) { to.vram_budget = bytes_of(value, "vram_budget"); }},
      {"host_budget", [](Options& to, py::handle value) { to.host_budget = bytes_of(value, "host_budget"); }},
      {"pinned_budget", [](Options& to, py::handle value) { to.pinned_budget = bytes_of(value, "pinned_budget"); }},
      {"map_file", [](Options& to, py::handle value) { to.map_file = flag_of(value, "map_file"); }},
      {"concurrency", [](Options& to, py::handle value) { to.concurrency = count_of(value, "concurrency"); }},
      {"numerics", [](Options& to, py::handle value) { to.numerics = choice_of(value, "numerics", kNumerics); }},
      {"gradients", [](Options& to, py::handle value) { to.gradients = choice_of(value, "gradients", kGradients); }},
      {"rule", [](Options& to, py::handle value) { to.rule = rule_of(value); }},
      {"rewrite_devices",
       [](Options& to, py::handle value) { to.rewrite_devices = flag_of(value, "rewrite_devices"); }},
  };
  return kSettings;
}

const std::vector<Setting<PoolOptions>>& pool_settings() {
  static const std::vector<Setting<PoolOptions>> kSettings = {
      {"device", [](PoolOptions& to, py::handle value) { to.device = device_of_python(value); }},
      {"vram_budget", [](PoolOptions& to, py::handle value) { to.vram_budget = bytes_of(value, "vram_budget"); }},
      {"host_budget", [](PoolOptions& to, py::handle value) { to.host_budget = bytes_of(value, "host_budget"); }},
      {"pinned_budget", [](PoolOptions& to, py::handle value) { to.pinned_budget = bytes_of(value, "pinned_budget"); }},
      {"concurrency", [](PoolOptions& to, py::handle value) { to.concurrency = count_of(value, "concurrency"); }},
  };
  return kSettings;
}

/// None stands for what an option is by default.
template <typename Meant>
Meant read_settings(const std::vector<Setting<Meant>>& known, const py::dict& given) {
  Meant options;
  for (const auto& [key, value] : given) {
    const std::string name = py::str(key);
    std::string names;
    const Setting<Meant>* found = nullptr;
    for (const Setting<Meant>& setting : known) {
      names += (names.empty() ? "" : ", ") + std::string(setting.name);
      found = name == setting.name ? &setting : found;
    }
    if (!found) {
      names.insert(0, "there is no option '" + name + "': there are ");
      throw py::type_error(names);
    }
    if (!value.is_none()) {
      found->set(options, value);
    }
  }
  return options;
}

const c10::FunctionSchema& schema_of(const torch::jit::Module& module, const std::string& method) {
  const auto found = module.find_method(method);
  if (!found) {
    std::string names;
    for (const auto& known : module.get_methods()) {
      names += (names.empty() ? "" : ", ") + known.name();
    }
    throw InputError("the model has no method '" + method + "'" + (names.empty() ? "" : ": it has " + names));
  }
  return found->function().getSchema();
}

} // namespace

std::optional<std::uint64_t> bytes_of(py::handle value, const char* option) {
  if (value.is_none()) {
    return std::nullopt;
  }
  if (py::isinstance<py::str>(value)) {
    try {
      return parse_bytes(value.cast<std::string>());
    } catch (const InputError& error) {
      throw InputError(std::string(option) + ": " + error.what());
    }
  }
  if (!is_int(value)) {
    refuse_type(option, "an int, or a str as in '8GiB',", value);
  }
  const auto bytes = PyLong_AsUnsignedLongLong(value.ptr());
  if (PyErr_Occurred()) {
    PyErr_Clear();
    throw InputError(std::string(option) + ": " + py::repr(value).cast<std::string>() +
                     " bytes are negative, or more than 64 bits hold");
  }
  return bytes;
}

Options options_of(const py::dict& given, const py::object& progress) {
  Options options = read_settings(settings(), given);
  options.progress = Progress(progress);
  return options;
}

PoolOptions pool_options_of(const py::dict& given) { return read_settings(pool_settings(), given); }

std::vector<c10::IValue> inputs_of(const c10::FunctionSchema& schema, const py::tuple& args, const py::dict& kwargs) {
  try {
    torch::jit::Stack stack = torch::jit::createStackForSchema(
        schema, torch::jit::tuple_slice(args), py::reinterpret_borrow<py::kwargs>(kwargs), c10::IValue() /* self */);
    stack.erase(stack.begin());
    return stack;
  } catch (const torch::jit::schema_match_error& error) {
    throw InputError(error.what());
  }
}

std::vector<ExampleCall> examples_of(const py::list& calls, const torch::jit::Module& module) {
  std::vector<ExampleCall> examples;
  for (const py::handle call : calls) {
    const auto [method, args, kwargs] = call.cast<std::tuple<std::string, py::tuple, py::dict>>();
    try {
      examples.push_back({method, inputs_of(schema_of(module, method), args, kwargs), {}});
    } catch (const InputError& error) {
      throw InputError("example_calls[" + std::to_string(examples.size()) + "]: " + error.what());
    }
  }
  return examples;
}

} // namespace offload::python
