#pragma once

#include <CLI/CLI.hpp>

#include <string>

#include <offload/profile.h>

namespace offload::tools {

/// The machine of this name that the library knows, or else the profile in this file. Throws InputError that says what
/// is wrong with the file that `option` names, or, where there is none, which names there are.
MachineProfile find_machine(const std::string& name_or_file, const std::string& option = "--machine");

/// --machines, which prints all machines that the library knows and ends the command. `format`, table or json, outlives
/// `app`, and its option was added before.
void add_machines_flag(CLI::App& app, const std::string& format);

} // namespace offload::tools
