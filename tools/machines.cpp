#include <tools/machines.h>

#include <cstdio>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>
#include <sstream>

#include <offload/bytes.h>
#include <offload/error.h>

namespace offload::tools {

namespace {

bool is_shipped(const std::string& name) {
  const auto& machines = shipped_machines();
  return std::any_of(machines.begin(), machines.end(), [&](const ShippedMachine& m) { return m.name == name; });
}

void print_table() {
  std::printf("%-18s %6s  %-13s %9s %9s %7s %7s %7s\n", "name", "memory", "link", "link", "memory", "fp64", "fp32",
              "half");
  std::printf("%-18s %6s  %-13s %9s %9s %7s %7s %7s\n", "", "GB", "", "GB/s", "GB/s", "TFLOP/s", "TFLOP/s", "TFLOP/s");
  for (const ShippedMachine& machine : shipped_machines()) {
    const PublishedRates& peak = machine.peak;
    std::printf("%-18s %6d  %-13s %9.1f %9.0f %7.2f %7.1f %7.1f\n", machine.name.c_str(), machine.memory_gb,
                machine.link.c_str(), peak.link_gb_per_s, peak.memory_gb_per_s, peak.fp64_tflops, peak.fp32_tflops,
                peak.half_tflops);
    std::printf("  published in  %s\n  host          %s\n", machine.sources.c_str(), machine.host.c_str());
  }
  std::printf("Rates are peaks. Plans count with what large operations reach of them: --format json prints both.\n");
}

void print_json() {
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (const ShippedMachine& machine : shipped_machines()) {
    const PublishedRates& peak = machine.peak;
    list.push_back({{"name", machine.name},
                    {"memory_gb", machine.memory_gb},
                    {"link", machine.link},
                    {"peak",
                     {{"link_gb_per_s", peak.link_gb_per_s},
                      {"memory_gb_per_s", peak.memory_gb_per_s},
                      {"fp64_tflops", peak.fp64_tflops},
                      {"fp32_tflops", peak.fp32_tflops},
                      {"half_tflops", peak.half_tflops}}},
                    {"host", machine.host},
                    {"sources", machine.sources},
                    {"profile", nlohmann::ordered_json::parse(to_json(machine.profile))}});
  }
  std::cout << list.dump(2) << '\n';
}

} // namespace

MachineProfile find_machine(const std::string& name_or_file, const std::string& option) {
  if (is_shipped(name_or_file)) {
    return shipped_profile(name_or_file);
  }
  std::ifstream file(name_or_file);
  if (!file) {
    try {
      return shipped_profile(name_or_file);
    } catch (const InputError& error) {
      throw InputError(option + " " + name_or_file + ": there is no such file, and " + error.what());
    }
  }
  std::stringstream text;
  text << file.rdbuf();
  try {
    return profile_from_json(text.str());
  } catch (const InputError& error) {
    throw InputError(option + " " + name_or_file + ": " + error.what());
  }
}

void add_machines_flag(CLI::App& app, const std::string& format) {
  app.add_flag_callback(
      "--machines",
      [&format] {
        format == "json" ? print_json() : print_table();
        throw CLI::Success();
      },
      "print the machines that are known by name, what is published of them and where, and end");
}

} // namespace offload::tools
