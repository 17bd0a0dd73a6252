// plan: prints where every weight of a model would live under a budget, and what a call would cost.

#include <offload/load/archive.h>
#include <offload/module.h>
#include <offload/preview.h>
#include <tools/calls.h>
#include <tools/machines.h>

#include <iostream>

int main(int argc, char** argv) {
  CLI::App app{"Prints the placement of a TorchScript model under a budget, and the predicted time of a call."};
  offload::tools::CallArguments arguments;
  arguments.add_calls_to(app);
  std::string machine;
  int callers = 1;
  app.add_option("--callers", callers, "callers at the same time, each of which makes one call after the other")
      ->check(CLI::Range(1, 64));
  app.add_option("--machine", machine,
                 "another machine: a name that --machines lists, or a file as `bench --profile` prints it");
  offload::tools::add_machines_flag(app, arguments.format);
  return offload::tools::run_command(app, argc, argv, [&] {
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
    const offload::Placement placement = offload::preview(std::move(module), options, profile);
    if (arguments.format == "json") {
      std::cout << offload::to_json(placement) << '\n';
    } else {
      std::cout << placement;
    }
    return offload::tools::kDone;
  });
}
