// bench: repeats the record on the machine at hand, and says how far from its limit every row is; or how far
// predictions are from what is measured.

#include <c10/core/Device.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <sstream>

#include <offload/bytes.h>
#include <offload/core/printable.h>
#include <offload/error.h>
#include <offload/load/archive.h>
#include <offload/measure.h>
#include <offload/preview.h>
#include <tools/bench_callers.h>
#include <tools/bench_cases.h>
#include <tools/bench_errors.h>
#include <tools/bench_measure.h>
#include <tools/bench_models.h>
#include <tools/bench_report.h>
#include <tools/bench_rules.h>
#include <tools/cli.h>
#include <tools/machines.h>

namespace {

using namespace offload::tools;

constexpr std::uint64_t kStagedPinned = offload::operator""_MiB(256);

struct Arguments {
  std::string tables;
  std::string rows;
  bool staged = false;
  std::string callers;
  std::string loads;
  std::vector<std::string> models;
  std::string against = "auto,gpu,cpu";
  std::string format = "table";
  std::string ring;
  int calls = 20;
  std::string device;
  bool profile = false;
  std::string output_dir;
  bool errors = false;
  bool monotone = false;
  bool rules = false;
  std::optional<std::size_t> budgets;
  std::string machine;

  void add_to(CLI::App& app) {
    app.add_option("--table", tables,
                   "tables of the record, as in 1,2; or all. Without --table, --rows, --staged, --callers and --model: "
                   "all but callers and models");
    app.add_option("--rows", rows, "stacks of 64 layers of 4096 x 4096 with so many rows of input, as in 1,16,64");
    app.add_flag("--staged", staged, "the first table, all streamed, with 256 MiB page-locked");
    app.add_option("--callers", callers, "so many at the same time, as in 1,2,4,8,16, with stacks of --rows");
    app.add_option(
        "--load", loads,
        "beside --callers: calls that arrive at random, at so much of what the callers reach, as in 0.5,0.8");
    app.add_option("--model", models, "an archive with NAME.inputs.pt beside it, at a tenth of its size; once for each")
        ->take_all()
        ->allow_extra_args(false);
    app.add_option("--against", against, "what stands beside our time")->capture_default_str();
    app.add_option("--format", format, "table, json, svg")->check(CLI::IsMember({"table", "json", "svg"}));
    app.add_option("--ring", ring,
                   "what a budget adds to the share of the weights; default: 96MiB or 3 layers, if that is more");
    app.add_option("--calls", calls, "timed calls in each row")->check(CLI::Range(1, 1000000))->capture_default_str();
    app.add_option("--device", device, "cuda:0, cpu; default: the first GPU where there is one");
    app.add_flag("--profile", profile, "only measure what things cost here, and print it for `plan --machine`");
    app.add_flag("--errors", errors,
                 "of each --model: what is predicted before the first call and after two beside what is measured, for "
                 "each shape of its inputs and several budgets");
    app.add_flag("--monotone", monotone,
                 "--errors, and whether predicted and measured times ever rise with the budget");
    app.add_flag("--rules", rules,
                 "of each --model: what a call takes where other weights stay (`plan --rule`), for each shape of its "
                 "inputs and several budgets");
    app.add_option("--budgets", budgets,
                   "how many budgets, from the smallest to that in which all is resident; default: 11, with --monotone "
                   "20, with --rules 5")
        ->check(CLI::Range(2, 1000));
    app.add_option("--machine", machine,
                   "what is predicted with before the first call: a name that `plan --machines` lists, or a file as "
                   "--profile prints it; default: what is measured here");
    app.add_option("--output-dir", output_dir, "write bench.md, bench.json and bench.svg there, too");
  }

  /// The options that choose something else than models.
  bool choose_stacks() const {
    return !tables.empty() || !rows.empty() || staged || !callers.empty() || !loads.empty();
  }
  bool predicts() const { return errors || monotone || rules; }

  /// Throws InputError for what says nothing together.
  void require_consistent() const {
    const std::string mode = rules ? "--rules" : monotone ? "--monotone" : "--errors";
    if (rules && (monotone || errors || format == "svg")) {
      throw offload::InputError(std::string("--rules is a table of its own: it contradicts ") + (monotone ? "--monotone"
                                                                                                 : errors
                                                                                                     ? "--errors"
                                                                                                     : "--format svg"));
    }
    if (!predicts() && (budgets || !machine.empty())) {
      throw offload::InputError(std::string(budgets ? "--budgets" : "--machine") +
                                " goes with --errors, --monotone or --rules");
    }
    if (predicts() && (choose_stacks() || profile)) {
      throw offload::InputError(mode +
                                " is of models: it contradicts --table, --rows, --staged, --callers, --load and "
                                "--profile");
    }
    if (predicts() && models.empty()) {
      throw offload::InputError(mode + " is of models: give --model");
    }
  }

  MeasureOptions options() const {
    MeasureOptions options;
    offload::Options library;
    if (!device.empty()) {
      library.device = offload::tools::parse_device(device);
    }
    options.device = offload::device_of(library);
    options.calls = calls;
    if (!ring.empty()) {
      try {
        options.ring_bytes = offload::parse_bytes(ring);
      } catch (const offload::InputError& error) {
        throw offload::InputError("--ring: " + std::string(error.what()));
      }
    }
    options.against_auto = options.against_gpu = options.against_cpu = false;
    std::istringstream list(against);
    for (std::string token; std::getline(list, token, ',');) {
      bool* which = token == "auto"  ? &options.against_auto
                    : token == "gpu" ? &options.against_gpu
                    : token == "cpu" ? &options.against_cpu
                                     : nullptr;
      if (!which) {
        throw offload::InputError("--against '" + token + "': give some of auto,gpu,cpu");
      }
      *which = true;
    }
    return options;
  }
};

Report measure(const Selection& selection, const std::vector<std::string>& models, MeasureOptions options) {
  Report report;
  report.setup = describe_setup(options.device);
  options.link_bytes_per_us = report.setup.link_bytes_per_us;
  const bool host_only = report.setup.host_only();
  for (Case stack : make_cases(selection)) {
    if (host_only) {
      stack = reduce(stack, free_bytes(c10::kCPU));
    }
    if (!selection.callers.empty()) {
      report.callers.push_back(measure_callers(stack, selection, options));
      continue;
    }
    const auto same = std::find_if(report.tables.begin(), report.tables.end(),
                                   [&](const TableResult& table) { return table.stack.same_work(stack); });
    if (same == report.tables.end()) {
      report.tables.push_back(measure_case(stack, options));
    } else {
      TableResult table = *same; // two tables of the record differ only in the machine
      table.measured_as = same->stack.title;
      table.stack = stack;
      report.tables.push_back(std::move(table));
    }
  }
  if (selection.staged && !host_only) { // on a host nothing is page-locked, and nothing staged
    Case stack = record_case(1);
    stack.layers_on_gpu = {0};
    report.staged = measure_staged(stack, kStagedPinned, options);
  }
  for (const std::string& model : models) {
    report.models.push_back(measure_model(model, options));
  }
  return report;
}

Report measure_predictions(const Arguments& arguments, const MeasureOptions& options) {
  constexpr std::size_t kBudgetsOfMonotone = 20;
  constexpr std::size_t kBudgetsOfRules = 5; // each is measured by all of them
  PredictionOptions predict;
  predict.whole_range = arguments.monotone;
  predict.budgets = arguments.budgets.value_or(arguments.monotone ? kBudgetsOfMonotone
                                               : arguments.rules  ? kBudgetsOfRules
                                                                  : predict.budgets);
  predict.machine =
      arguments.machine.empty() ? offload::machine_profile(options.device) : find_machine(arguments.machine);
  for (const std::string& model : arguments.models) { // what is missing is said now, not after others are measured
    example_calls_of(model, offload::read_archive(model, offload::Weights::on_file), options.device);
  }
  Report report;
  report.setup = describe_setup(options.device);
  for (const std::string& model : arguments.models) {
    if (arguments.rules) {
      const std::vector<RuleRow> rows = measure_rules(model, predict, options);
      report.rules.insert(report.rules.end(), rows.begin(), rows.end());
      continue;
    }
    const PredictionErrors errors = measure_errors(model, predict, options);
    report.errors.insert(report.errors.end(), errors.rows.begin(), errors.rows.end());
    report.ranges.insert(report.ranges.end(), errors.ranges.begin(), errors.ranges.end());
  }
  return report;
}

void write_file(const std::filesystem::path& path, const std::string& text) {
  std::ofstream file(path, std::ios::binary);
  if (!(file << text) || !file.flush()) {
    throw offload::Error(path.string() + ": can not be written");
  }
}

} // namespace

int main(int argc, char** argv) {
  CLI::App app{"Measures residual stacks at the record's shares of device memory, beside the record and the limit."};
  Arguments arguments;
  arguments.add_to(app);
  return run_command(app, argc, argv, [&] {
    arguments.require_consistent();
    const bool only_models = !arguments.models.empty() && !arguments.choose_stacks();
    const Selection selection = only_models ? Selection()
                                            : parse_selection(arguments.tables, arguments.rows, arguments.staged,
                                                              arguments.callers, arguments.loads);
    MeasureOptions options = arguments.options();
    if (arguments.profile) {
      offload::MachineProfile profile = offload::measure_machine(options.device);
      profile.file_bytes_per_us = offload::measure_file_reads(std::filesystem::temp_directory_path().string());
      std::cout << offload::to_json(profile) << '\n';
      return kDone;
    }
    const std::filesystem::path folder = arguments.output_dir;
    std::error_code error;
    if (!folder.empty() && !std::filesystem::create_directories(folder, error) && error) {
      throw offload::InputError("--output-dir '" + arguments.output_dir + "': " + error.message());
    }
    if (!folder.empty() && !std::ofstream(folder / "bench.md", std::ios::app)) { // now, not after all is measured
      throw offload::InputError("--output-dir '" + arguments.output_dir + "': can not be written");
    }
    const bool terminal = isatty(STDERR_FILENO) == 1;
    if (terminal) {
      options.progress = [](const std::string& what) { std::cerr << "\r\033[K" << what << std::flush; };
    }
    Report report =
        arguments.predicts() ? measure_predictions(arguments, options) : measure(selection, arguments.models, options);
    if (terminal) {
      std::cerr << "\r\033[K";
    }
    for (int i = 0; i < argc; ++i) {
      report.setup.command += (i > 0 ? " " : "") + (i > 0 ? std::string(argv[i]) : "bench");
    }
    std::cout << (arguments.format == "json"  ? to_json(report)
                  : arguments.format == "svg" ? to_svg(report)
                                              : to_markdown(report));
    if (!folder.empty()) {
      write_file(folder / "bench.md", to_markdown(report));
      write_file(folder / "bench.json", to_json(report));
      if (!arguments.rules) {
        write_file(folder / "bench.svg", to_svg(report));
      }
    }
    const std::string failure = report.first_failure();
    if (!failure.empty()) {
      std::cerr << "error: " << offload::printable(failure) << '\n';
      return kWrongResult;
    }
    return kDone;
  });
}
