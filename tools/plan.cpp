// plan: prints where every weight of a model would live under a budget, and what a call would cost; when what happens
// in it; and time against budget.

#include <offload/load/archive.h>
#include <offload/module.h>
#include <offload/preview.h>
#include <sys/ioctl.h>
#include <tools/calls.h>
#include <tools/machines.h>
#include <tools/plan_compare.h>
#include <tools/plan_sweep.h>
#include <tools/plan_timeline.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <iostream>
#include <optional>
#include <string>

namespace {

/// What is printed beside a placement, or instead of it.
struct Wanted {
  bool sweep = false;
  bool plot = false;
  std::optional<std::string> fit;

  void add_to(CLI::App& app) {
    app.add_flag("--sweep", sweep, "time of a call against the budget, up to --vram, or to all that can be resident");
    app.add_flag("--plot", plot, "the same as a plot in the terminal");
    app.add_option("--fit", fit, "the smallest budget, at most --vram, for a call of so long, as in 20ms");
  }

  /// Throws InputError for what can not be printed together.
  void require_consistent(const std::string& format, bool compares) const {
    if (compares && (fit || format == "trace")) {
      throw offload::InputError(std::string("--compare and ") + (fit ? "--fit" : "--format trace") +
                                " contradict each other: give one of them");
    }
    if (fit && (sweep || plot)) {
      throw offload::InputError(std::string("--fit and ") + (sweep ? "--sweep" : "--plot") +
                                " contradict each other: give one of them");
    }
    if (plot && format != "table") {
      throw offload::InputError("--plot and --format " + format + " contradict each other: give one of them");
    }
    if (format == "trace" && (sweep || fit)) {
      throw offload::InputError("--format trace is of one call: it has no " + std::string(fit ? "--fit" : "--sweep"));
    }
    if (format == "svg" && fit) {
      throw offload::InputError("--format svg draws a call or --sweep: it has no --fit");
    }
  }
};

/// Of the terminal, or what most have.
std::size_t columns_of_terminal() {
  winsize size{};
  return ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? std::min<std::size_t>(size.ws_col, 160) : 80;
}

/// Of one machine, or of several.
template <typename Sweeps>
void print_sweep(const Sweeps& sweep, const Wanted& wanted, const std::string& format) {
  if (!wanted.plot || wanted.sweep) {
    std::cout << (format == "json"  ? offload::tools::to_json(sweep)
                  : format == "svg" ? offload::tools::to_svg(sweep)
                                    : offload::tools::to_table(sweep));
  }
  if (wanted.plot) {
    std::cout << offload::tools::to_plot(sweep, columns_of_terminal());
  }
}

/// What is predicted for each machine: under each of some forty budgets, or under the one that is given; where none is,
/// under what the machine has.
std::vector<offload::Sweep> sweep_machines(const torch::jit::Module& module, const offload::Options& options,
                                           const std::vector<offload::MachineProfile>& machines, bool all_budgets) {
  std::vector<offload::Sweep> sweeps;
  for (const offload::MachineProfile& machine : machines) {
    try {
      std::vector<std::uint64_t> budgets;
      if (!all_budgets) {
        budgets.push_back(options.vram_budget ? *options.vram_budget
                                              : offload::preview(module, options, machine).budget.vram);
      }
      sweeps.push_back(offload::sweep(module, options, budgets, machine));
    } catch (const offload::BudgetError& error) {
      throw offload::InputError("--compare " + machine.name + ": " + error.what());
    }
  }
  return sweeps;
}

} // namespace

int main(int argc, char** argv) {
  CLI::App app{"Prints the placement of a TorchScript model under a budget, and the predicted time of a call."};
  offload::tools::CallArguments arguments;
  arguments.add_calls_to(app, {"table", "json", "svg", "trace"});
  Wanted wanted;
  wanted.add_to(app);
  offload::tools::Comparison comparison;
  comparison.add_to(app);
  std::string machine;
  int callers = 1;
  app.add_option("--callers", callers, "callers at the same time, each of which makes one call after the other")
      ->check(CLI::Range(1, 64));
  app.add_option("--machine", machine,
                 "another machine: a name that --machines lists, or a file as `bench --profile` prints it");
  offload::tools::add_machines_flag(app, arguments.format);
  return offload::tools::run_command(app, argc, argv, [&] {
    wanted.require_consistent(arguments.format, comparison.is_asked_for());
    if (comparison.is_asked_for() && !machine.empty()) {
      throw offload::InputError("--compare and --machine contradict each other: give one of them");
    }
    const auto machines = comparison.is_asked_for() ? comparison.machines() : std::vector<offload::MachineProfile>();
    const double fit_us = wanted.fit ? offload::tools::parse_time_us("--fit", *wanted.fit) : 0;
    offload::Options options = arguments.options();
    options.concurrency = callers;
    const auto profile = machine.empty() ? std::nullopt : std::optional(offload::tools::find_machine(machine));
    arguments.load_libraries();
    torch::jit::Module module = offload::read_archive(arguments.model, offload::Weights::on_file);
    if (app.count("--method") > 0) {
      offload::tools::schema_of(module, arguments.method);
    }
    if (arguments.give_calls()) { // they show shapes, branches and activations, on the device at hand
      options.example_calls = arguments.examples_of(arguments.make_calls(module, offload::device_of(options)));
    }
    if (!machines.empty()) {
      print_sweep(sweep_machines(module, options, machines, wanted.sweep || wanted.plot), wanted, arguments.format);
    } else if (wanted.fit) {
      const offload::Fit fit = offload::fit(std::move(module), options, fit_us, profile);
      std::cout << (arguments.format == "json" ? offload::tools::to_json(fit, fit_us)
                                               : offload::tools::to_table(fit, fit_us));
    } else if (wanted.sweep || wanted.plot) {
      print_sweep(offload::sweep(std::move(module), options, {}, profile), wanted, arguments.format);
    } else if (arguments.format == "svg" || arguments.format == "trace") {
      const offload::Timeline timeline = offload::timeline(std::move(module), options, profile);
      const std::string heading = "A call of " + std::filesystem::path(arguments.model).filename().string();
      std::cout << (arguments.format == "svg"
                        ? offload::tools::to_svg(timeline, heading, "the output of the call before")
                        : offload::tools::to_trace(timeline, heading) + "\n");
    } else {
      const offload::Placement placement = offload::preview(std::move(module), options, profile);
      if (arguments.format == "json") {
        std::cout << offload::to_json(placement) << '\n';
      } else {
        std::cout << placement;
      }
    }
    return offload::tools::kDone;
  });
}
