#pragma once

#include <CLI/CLI.hpp>

#include <optional>
#include <string>
#include <vector>

#include <offload/profile.h>
#include <offload/sweep.h>

namespace offload::tools {

/// --compare: what is planned for, on several machines.
class Comparison {
 public:
  void add_to(CLI::App& app);

  bool is_asked_for() const { return given_.has_value(); }

  /// The machines, each with the name that it was given by. Throws InputError for fewer than two, for one that is named
  /// twice, and as find_machine().
  std::vector<MachineProfile> machines() const;

 private:
  std::optional<std::string> given_;
};

/// Of several machines, one point or a curve each.
std::string to_table(const std::vector<Sweep>& machines);
std::string to_json(const std::vector<Sweep>& machines);
std::string to_svg(const std::vector<Sweep>& machines);

/// The curves in plain characters, a letter for each machine, `columns` wide.
std::string to_plot(const std::vector<Sweep>& machines, std::size_t columns);

} // namespace offload::tools
