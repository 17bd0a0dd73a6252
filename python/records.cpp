// What a module says of itself, as objects of Python: they are copies, which no longer change.

#include <sstream>
#include <string>
#include <tuple>
#include <vector>

#include <offload/pool.h>
#include <offload/timeline.h>
#include <python/bindings.h>
#include <python/errors.h>
#include <tools/plan_timeline.h>

namespace offload::python {

namespace py = pybind11;

namespace {

/// A placement, and when what happens under it.
struct Plan {
  Placement placement;
  Timeline timeline;
};

/// Printed bytes are names of a model, too, which need not be UTF-8.
py::str text_of(const std::string& text) {
  PyObject* decoded = PyUnicode_DecodeUTF8(text.data(), static_cast<Py_ssize_t>(text.size()), "backslashreplace");
  if (!decoded) {
    throw py::error_already_set();
  }
  return py::reinterpret_steal<py::str>(decoded);
}

template <typename Printed>
py::str print(const Printed& printed) {
  std::ostringstream out;
  out << printed;
  std::string text = out.str();
  while (!text.empty() && text.back() == '\n') {
    text.pop_back();
  }
  return text_of(text);
}

py::str svg_of(const Plan& plan) {
  return text_of(tools::to_svg(plan.timeline, "A call on " + plan.placement.device, "the output of the call before"));
}

py::str html_of(const Plan& plan) {
  const py::object escaped = py::module_::import("html").attr("escape")(print(plan.placement));
  return py::str("<div>{}<details><summary>Which weights are where</summary><pre>{}</pre></details></div>")
      .format(svg_of(plan), escaped);
}

py::object dict_of(const Plan& plan) {
  return py::module_::import("json").attr("loads")(text_of(to_json(plan.placement)));
}

/// A member of a record, by its name in Python.
template <typename Record>
using Named = std::pair<const char*, py::object (*)(const Record& record)>;

template <typename Record, auto Member>
py::object read(const Record& record) {
  return py::cast(record.*Member);
}

template <typename Record>
py::dict dict_of(const std::vector<Named<Record>>& members, const Record& record) {
  py::dict dict;
  for (const auto& [name, get] : members) {
    dict[name] = get(record);
  }
  return dict;
}

/// `members` as properties, and to_dict() with all of them.
template <typename Record>
py::class_<Record> bind_record(py::module_& module, const char* name, std::vector<Named<Record>> members) {
  py::class_<Record> type(module, name);
  for (const auto& [member, get] : members) {
    type.def_property_readonly(member, get);
  }
  type.def("to_dict", [members = std::move(members)](const Record& record) { return dict_of(members, record); });
  return type;
}

const std::vector<Named<Stats>>& stats_members() {
  static const std::vector<Named<Stats>> kMembers = {
      {"calls", read<Stats, &Stats::calls>},
      {"calls_repeated", read<Stats, &Stats::calls_repeated>},
      {"bytes_streamed", read<Stats, &Stats::bytes_streamed>},
      {"bytes_ahead", read<Stats, &Stats::bytes_ahead>},
      {"bytes_resident", read<Stats, &Stats::bytes_resident>},
      {"copies", read<Stats, &Stats::copies>},
      {"passes", read<Stats, &Stats::passes>},
      {"calls_in_passes", read<Stats, &Stats::calls_in_passes>},
      {"misses", read<Stats, &Stats::misses>},
      {"bytes_in_place", read<Stats, &Stats::bytes_in_place>},
      {"bytes_in_cache", read<Stats, &Stats::bytes_in_cache>},
      {"call_us", read<Stats, &Stats::call_us>},
      {"stall_us", read<Stats, &Stats::stall_us>},
      {"wait_turn_us", read<Stats, &Stats::wait_turn_us>},
      {"wait_door_us", read<Stats, &Stats::wait_door_us>},
      {"wait_calls_us", read<Stats, &Stats::wait_calls_us>},
      {"peak_device_bytes", read<Stats, &Stats::peak_device_bytes>},
      {"outside_bytes", read<Stats, &Stats::outside_bytes>},
  };
  return kMembers;
}

py::list advice_of(const Report& report) {
  py::list list;
  for (const Advice& advice : report.advice) {
    py::dict dict;
    dict["change"] = to_string(advice.change);
    dict["gain"] = advice.gain;
    dict["vram"] = advice.then.vram;
    dict["time_us"] = advice.then.time_us;
    dict["streamed_bytes"] = advice.then.streamed_bytes;
    list.append(std::move(dict));
  }
  return list;
}

const std::vector<Named<Report>>& report_members() {
  static const std::vector<Named<Report>> kMembers = {
      {"seconds", read<Report, &Report::seconds>},
      {"calls", [](const Report& report) { return py::object(py::cast(report.since.calls)); }},
      {"call_us", [](const Report& report) { return py::object(py::cast(report.call_us())); }},
      {"calls_in_pass", [](const Report& report) { return py::object(py::cast(report.calls_in_pass())); }},
      {"bytes_per_call", [](const Report& report) { return py::object(py::cast(report.bytes_per_call())); }},
      {"link_share", read<Report, &Report::link_share>},
      {"predicted_us", [](const Report& report) { return py::object(py::cast(report.predicted.round.time_us)); }},
      {"bound", [](const Report& report) { return py::object(py::str(to_string(report.bound))); }},
      {"deviation", [](const Report& report) { return py::object(py::cast(report.deviation.factor)); }},
      {"advice", [](const Report& report) { return py::object(advice_of(report)); }},
      {"since", [](const Report& report) { return py::object(dict_of(stats_members(), report.since)); }},
  };
  return kMembers;
}

py::str name_of(const PoolEntry& entry) { return text_of(entry.name); }

} // namespace

void bind_records(py::module_& module) {
  py::class_<Plan>(module, "Placement")
      .def("__str__", [](const Plan& plan) { return print(plan.placement); })
      .def("to_dict", [](const Plan& plan) { return dict_of(plan); })
      .def("to_svg", &svg_of)
      .def("_repr_html_", &html_of)
      .def_property_readonly("device", [](const Plan& plan) { return plan.placement.device; })
      .def_property_readonly("minimum_bytes", [](const Plan& plan) { return plan.placement.budget.minimum; })
      .def_property_readonly("writes_state", [](const Plan& plan) { return plan.placement.writes_state; });
  bind_record<Stats>(module, "Stats", stats_members()).def("__str__", &print<Stats>);
  bind_record<Report>(module, "Report", report_members()).def("__str__", &print<Report>);
  bind_record<PoolEntry>(module, "PoolEntry",
                         {{"name", [](const PoolEntry& entry) { return py::object(name_of(entry)); }},
                          {"weight_bytes", read<PoolEntry, &PoolEntry::weight_bytes>},
                          {"resident_bytes", read<PoolEntry, &PoolEntry::resident_bytes>},
                          {"calls", read<PoolEntry, &PoolEntry::calls>},
                          {"idle_seconds", read<PoolEntry, &PoolEntry::idle_seconds>},
                          {"wake_seconds", read<PoolEntry, &PoolEntry::wake_seconds>},
                          {"problem", [](const PoolEntry& entry) { return py::object(text_of(entry.problem)); }}});
}

py::object placement_of(const Module& of) {
  return py::cast(call_released([&] { return Plan{of.placement(), of.predicted_timeline()}; }));
}

} // namespace offload::python
