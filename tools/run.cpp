// run: calls a model under a budget, compares every output with the reference, and reports what was measured.

#include <ATen/Context.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <iostream>
#include <mutex>
#include <nlohmann/json.hpp>
#include <thread>

#include <offload/graph/reference.h>
#include <offload/load/archive.h>
#include <offload/module.h>
#include <offload/preview.h>
#include <tools/calls.h>
#include <tools/compare.h>
#include <tools/plan_timeline.h>
#include <tools/save_calls.h>

namespace {

using offload::tools::Call;

constexpr int kMostCallers = 16; // at the same time; others wait

struct Arguments : offload::tools::CallArguments {
  std::string reference;
  std::string save;
  int calls = 0;
  int threads = 1;
  bool check = false;

  void add_options_to(CLI::App& app) {
    add_calls_to(app, {"table", "json", "svg", "trace"});
    app.add_option("--calls", calls, "how many; default: each of --inputs once, or 3")
        ->check(CLI::Range(1, 1000000000));
    app.add_option("--threads", threads, "that call at the same time, each on a lane of its own up to 16")
        ->check(CLI::Range(1, 1024));
    app.add_flag("--check", check, "compare every output bit by bit with the model wholly on the device");
    app.add_option("--reference", reference, "compare with this archive instead of MODEL");
    app.add_option("--save", save, "write inputs and outputs for torch.load");
  }
};

/// Waits for the call, not for what has been prefetched for the next.
void synchronize(c10::Device device) {
  if (device.is_cuda()) {
    c10::cuda::getCurrentCUDAStream(device.index()).synchronize();
  }
}

/// A model that draws random numbers draws the same in its reference, as long as one thread calls.
void seed_call(const Arguments& arguments, std::size_t call) {
  if (arguments.check && arguments.threads == 1) {
    at::manual_seed(call % 1000);
  }
}

struct Outcome {
  std::vector<double> times_us;
  std::vector<c10::IValue> outputs; // one for each call, in the order of the calls
  std::string difference;           // the first that was found
  offload::Stats before;
  offload::Stats after;
};

/// Makes `count` calls; call number i is made with input i, modulo their number, and expected to give output i. One
/// call before them is not counted, unless calls change the module.
Outcome make_calls(offload::Module& module, const Arguments& arguments, const std::vector<Call>& calls,
                   std::size_t count, bool writes_state, const std::vector<c10::IValue>& expected) {
  Outcome outcome;
  outcome.times_us.resize(count);
  outcome.outputs.resize(arguments.save.empty() ? 0 : count);
  std::mutex mutex;
  const auto look_at = [&](std::size_t i, const c10::IValue& output) {
    if (expected.empty()) {
      return;
    }
    const std::string difference = offload::tools::first_difference(output, expected[i % expected.size()],
                                                                    "call " + std::to_string(i) + ", output");
    const std::lock_guard lock(mutex);
    if (outcome.difference.empty()) {
      outcome.difference = difference;
    }
  };
  if (!writes_state) {
    seed_call(arguments, 0);
    look_at(0, module.run_method(arguments.method, calls[0]));
  }
  synchronize(module.device()); // what was made on the default stream is there for others
  outcome.before = module.stats();
  std::atomic<std::size_t> next = 0;
  std::exception_ptr failure;
  const auto work = [&] {
    std::optional<c10::cuda::CUDAStreamGuard> own; // calls on one stream come one after another
    if (arguments.threads > 1 && module.device().is_cuda()) {
      own.emplace(c10::cuda::getStreamFromPool(/*isHighPriority=*/false, module.device().index()));
    }
    try {
      for (std::size_t i = next++; i < count; i = next++) {
        seed_call(arguments, i);
        const auto begin = std::chrono::steady_clock::now();
        c10::IValue output = module.run_method(arguments.method, calls[i % calls.size()]);
        synchronize(module.device());
        outcome.times_us[i] =
            std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - begin).count();
        look_at(i, output);
        if (!outcome.outputs.empty()) {
          outcome.outputs[i] = std::move(output);
        }
      }
    } catch (...) {
      const std::lock_guard lock(mutex);
      failure = std::current_exception();
      next = count;
    }
  };
  std::vector<std::thread> threads;
  for (int i = 1; i < arguments.threads; ++i) {
    threads.emplace_back(work);
  }
  work();
  for (std::thread& thread : threads) {
    thread.join();
  }
  if (failure) {
    std::rethrow_exception(failure);
  }
  outcome.after = module.stats();
  return outcome;
}

/// What tells whether a file has changed.
std::pair<std::filesystem::file_time_type, std::uintmax_t> state_of(const std::string& path) {
  std::error_code none;
  return {std::filesystem::last_write_time(path, none), std::filesystem::file_size(path, none)};
}

/// What the first `count` calls give.
std::vector<c10::IValue> run_reference(const Arguments& arguments, const std::vector<Call>& calls, std::size_t count,
                                       c10::Device device) {
  std::vector<c10::IValue> outputs;
  if (count == 0) {
    return outputs;
  }
  torch::jit::Module module =
      offload::read_archive(arguments.reference.empty() ? arguments.model : arguments.reference);
  try {
    offload::tools::schema_of(module, arguments.method);
  } catch (const offload::InputError& error) {
    throw offload::InputError("--reference " + arguments.reference + ": " + error.what());
  }
  using offload::DeviceConstants;
  offload::Reference reference(std::move(module), device,
                               arguments.keep_devices ? DeviceConstants::keep : DeviceConstants::rewrite,
                               arguments.options().gradients);
  for (std::size_t i = 0; i < count; ++i) {
    seed_call(arguments, i);
    try {
      outputs.push_back(reference.run(arguments.method, calls[i % calls.size()]).deepcopy());
    } catch (const std::exception& error) {
      if (arguments.reference.empty()) {
        throw;
      }
      throw offload::InputError("--reference " + arguments.reference +
                                ": it does not take these inputs: " + offload::tools::last_line(error.what()));
    }
  }
  return outputs;
}

nlohmann::ordered_json json_of(const std::vector<offload::Advice>& advice) {
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (const offload::Advice& each : advice) {
    list.push_back({{"change", offload::to_string(each.change)},
                    {"vram", each.then.vram},
                    {"time_us", each.then.time_us},
                    {"streamed_bytes", each.then.streamed_bytes},
                    {"gain", each.gain}});
  }
  return list;
}

void report(const Arguments& arguments, const offload::Placement& placement, const Outcome& outcome,
            const offload::Report& report, std::ostream& out) {
  std::vector<double> times = outcome.times_us;
  std::sort(times.begin(), times.end());
  const double median_us = times[times.size() / 2];
  const double calls = static_cast<double>(times.size());
  const offload::Stats& before = outcome.before;
  const offload::Stats& after = outcome.after;
  const double streamed =
      static_cast<double>((after.bytes_streamed - after.bytes_ahead) - (before.bytes_streamed - before.bytes_ahead)) /
      calls;
  const double misses = static_cast<double>(after.misses - before.misses) / calls;
  const double in_cache = static_cast<double>(after.bytes_in_cache - before.bytes_in_cache) / calls;
  const double stall_us = (after.stall_us - before.stall_us) / calls;
  const double passes = static_cast<double>(after.passes - before.passes);
  const double in_pass = passes == 0 ? 0 : static_cast<double>(after.calls_in_passes - before.calls_in_passes) / passes;
  const double wait_us = (after.wait_turn_us + after.wait_door_us + after.wait_calls_us -
                          (before.wait_turn_us + before.wait_door_us + before.wait_calls_us)) /
                         calls;
  const char* check = !arguments.check ? "not asked for" : outcome.difference.empty() ? "bit-identical" : "different";
  if (arguments.format == "json") {
    nlohmann::ordered_json json;
    json["plan"] = nlohmann::ordered_json::parse(offload::to_json(placement));
    json["predicted"] = json["plan"]["predicted"];
    json["measured"] = {{"time_us", median_us},
                        {"peak_device_bytes", after.peak_device_bytes},
                        {"outside_bytes", after.outside_bytes},
                        {"streamed_bytes", streamed},
                        {"in_cache_bytes", in_cache},
                        {"misses", misses},
                        {"stall_us", stall_us},
                        {"calls_in_pass", in_pass},
                        {"wait_us", wait_us},
                        {"calls", times.size()}};
    json["bound"] = offload::to_string(report.bound);
    json["advice"] = json_of(report.advice);
    json["check"] = check;
    out << json.dump(2) << '\n';
    return;
  }
  const offload::Prediction& predicted = placement.predicted;
  out << placement << "\nRun of " << times.size() << " calls on " << placement.device
      << (placement.device == "cpu" ? " (the host stands in for a device: its memory is the budget, a copy the link)"
                                    : "")
      << "\n              predicted      measured\n";
  char line[128];
  std::snprintf(line, sizeof line, "  time     %11.3f ms  %11.3f ms (median)\n", predicted.time_us / 1e3,
                median_us / 1e3);
  out << line;
  std::snprintf(line, sizeof line, "  streamed %14s  %14s a call\n",
                offload::format_bytes(predicted.streamed_bytes).c_str(),
                offload::format_bytes(static_cast<std::uint64_t>(streamed)).c_str());
  out << line;
  if (placement.device == "cpu" && placement.budget.file > 0) {
    std::snprintf(line, sizeof line, "  of that  %14s  %14s read in the page cache, uncopied\n", "",
                  offload::format_bytes(static_cast<std::uint64_t>(in_cache)).c_str());
    out << line;
  }
  std::snprintf(line, sizeof line, "  peak     %14s  %14s on the device\n",
                offload::format_bytes(predicted.peak_device_bytes).c_str(),
                offload::format_bytes(after.peak_device_bytes).c_str());
  out << line;
  if (placement.device != "cpu") {
    std::snprintf(line, sizeof line, "  beside   %14s  %14s in use on the device: context, kernels, handles, others\n",
                  "", offload::format_bytes(after.outside_bytes).c_str());
    out << line;
  }
  if (arguments.threads > 1) {
    out << "  calls in a pass over what is streamed: " << in_pass << "; each waited " << wait_us / 1e3
        << " ms for others\n";
  }
  out << "  misses " << misses << " and stall " << stall_us / 1e3 << " ms a call\n  check: " << check << "\n\n"
      << report;
}

/// The last call that was timed.
void draw(const Arguments& arguments, const offload::Module& module, std::ostream& out) {
  const std::optional<offload::Timeline> timeline = module.recorded_timeline();
  if (!timeline) {
    throw offload::InputError("--format " + arguments.format +
                              ": no call was timed, since none was alone, or each had a shape of its own; give "
                              "--threads 1, and --calls for more calls");
  }
  const std::string heading = "A call of " + std::filesystem::path(arguments.model).filename().string() +
                              ", as it ran on " + module.device().str();
  out << (arguments.format == "svg" ? offload::tools::to_svg(*timeline, heading, "it began on the device")
                                    : offload::tools::to_trace(*timeline, heading) + "\n");
}

} // namespace

int main(int argc, char** argv) {
  CLI::App app{"Runs a TorchScript model under a budget of device memory and reports what was measured."};
  Arguments arguments;
  arguments.add_options_to(app);
  return offload::tools::run_command(app, argc, argv, [&] {
    offload::Options options = arguments.options();
    options.concurrency = std::min(arguments.threads, kMostCallers);
    if (!arguments.reference.empty() && !arguments.check) {
      throw offload::InputError("--reference is what --check compares with: give both");
    }
    for (const std::string& read : {arguments.model, arguments.inputs_file, arguments.reference}) {
      std::error_code none;
      if (!arguments.save.empty() && std::filesystem::equivalent(arguments.save, read, none)) {
        throw offload::InputError("--save " + arguments.save + ": this file is read, and would be overwritten");
      }
    }
    arguments.load_libraries();
    options.device = offload::device_of(options);
    const std::vector<Call> calls =
        arguments.make_calls(offload::read_archive(arguments.model, offload::Weights::on_file), *options.device);
    const std::size_t count = arguments.calls > 0 ? arguments.calls : arguments.inputs_file.empty() ? 3 : calls.size();
    options.example_calls = arguments.examples_of(calls);
    const auto state = state_of(arguments.model);
    offload::Module module = offload::load(arguments.model, options);
    const bool writes_state = module.placement().writes_state;
    if (writes_state && arguments.check && arguments.threads > 1) {
      throw offload::InputError(
          "--check and --threads: calls of this model change it, so what they give depends on their order; give "
          "--threads 1");
    }
    const std::size_t references = !arguments.check ? 0 : writes_state ? count : std::min(count, calls.size());
    const std::vector<c10::IValue> expected = run_reference(arguments, calls, references, module.device());
    if (arguments.check && state_of(arguments.model) != state) {
      throw offload::InputError(arguments.model +
                                ": was changed between the two times that --check reads it: run again");
    }
    const Outcome outcome = make_calls(module, arguments, calls, count, writes_state, expected);
    if (!arguments.save.empty()) {
      offload::tools::save_calls(arguments.save, calls, outcome.outputs);
    }
    const bool is_drawn = arguments.format == "svg" || arguments.format == "trace";
    if (!is_drawn) {
      report(arguments, module.placement(), outcome, module.report(), std::cout);
    }
    if (!outcome.difference.empty()) {
      std::cerr << "error: not the output of the reference: " << outcome.difference << '\n';
      return offload::tools::kWrongResult;
    }
    if (is_drawn) {
      draw(arguments, module, std::cout);
    }
    return offload::tools::kDone;
  });
}
