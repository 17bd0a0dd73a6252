// The oracle: every model of some folders, at the smallest budget, at half its size and at twice, with its calls named
// in advance and not, one call after another and from two threads: outputs and state bit-equal to the plain model,
// bytes as planned, and nothing resident without a reason that counts. The models are those of models/export.py,
// tests/small_models.py and tests/random_models.py.
//
// usage: matrix [--device cpu|cuda:0] [--brief] [--library FILE.so]... [--table FILE [--update]] FOLDER...
// --brief: the smallest budget only, and one call each, for where code is slow, as under a sanitizer.

#include <ATen/Parallel.h>
#include <torch/csrc/jit/api/module.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <map>
#include <optional>
#include <set>
#include <sstream>
#include <thread>

#include <offload/bytes.h>
#include <offload/graph/reference.h>
#include <offload/load/archive.h>
#include <offload/module.h>
#include <offload/preview.h>
#include <tools/cli.h>
#include <tools/compare.h>
#include <tools/inputs.h>

#include "archives.h"
#include "plain_exact.h"

namespace offload::test {
namespace {

struct Summary {
  std::string name;
  std::uint64_t bytes = 0; ///< of all weights
  std::uint64_t minimum = 0;
  double streams = 0; ///< share of the weight bytes that stream, or are read in place, at the smallest budget
  std::map<std::string, std::uint64_t> stays; ///< bytes by reason
  std::set<std::string> taken;
  bool writes_state = false;
  std::string
      plain; ///< what keeps bits from being compared: the plain model can not be run there, or is not exact itself
  std::vector<std::string> failures;
};

enum class Extent { full, brief };

std::uint64_t weight_bytes(const Placement& placement) {
  std::uint64_t bytes = 0;
  for (const PlacedWeight& weight : placement.weights) {
    bytes += weight.bytes;
  }
  for (const Resident& resident : placement.resident_because) {
    bytes += resident.bytes;
  }
  return bytes;
}

class Matrix {
 public:
  Matrix(const std::filesystem::path& path, c10::Device device, Extent extent)
      : path_(path), device_(device), extent_(extent) {
    summary_.name = path.stem().string();
    auto inputs = path;
    const torch::jit::Module module = read_archive(path.string());
    calls_ = tools::read_inputs(inputs.replace_extension(".inputs.pt").string(), device,
                                tools::schema_of(module, "forward"));
    if (extent_ == Extent::brief) {
      calls_.resize(1);
    }
  }

  Summary run() {
    std::optional<Deterministic> deterministic;
    try {
      if (device_.is_cuda() && !plain_is_exact(path_.string(), device_, calls_)) {
        deterministic.emplace();
        summary_.plain = plain_is_exact(path_.string(), device_, calls_) ? "" : "gives other bits from call to call";
      }
    } catch (const std::exception& error) {
      const std::string what = error.what(); // its first line, or, of TorchScript's, the one that names the error
      const std::size_t begin = what.rfind("RuntimeError: ") == std::string::npos ? 0 : what.rfind("RuntimeError: ");
      summary_.plain = "can not be run there: " + what.substr(begin, what.find('\n', begin) - begin);
      return summary_;
    }
    Options options;
    options.device = device_;
    options.vram_budget = 1024_GiB;
    const Placement known = preview(read_archive(path_.string(), Weights::on_file), options);
    summary_.writes_state = known.writes_state;
    options.concurrency = known.writes_state ? 1 : 2;
    options.example_calls = examples(calls_);
    summary_.bytes = weight_bytes(known);
    look_at_reasons(known);

    options.vram_budget = summary_.minimum = find_minimum(options);
    look_at("smallest", options);
    if (extent_ == Extent::brief) {
      return summary_;
    }
    if (device_.is_cpu()) {
      options.vram_budget = summary_.minimum - 1;
      expect_refusal(options);
    }
    options.vram_budget = std::max(summary_.minimum, summary_.bytes / 2);
    look_at("half", options);
    // On a GPU half of what is beyond the smallest is for further lanes.
    options.vram_budget = summary_.minimum + (device_.is_cuda() ? 3 * summary_.bytes + 16_MiB : 2 * summary_.bytes);
    look_at("all", options);

    options.example_calls.clear();
    look_at("all, no call named", options);
    options.vram_budget = summary_.minimum;
    look_at("smallest, no call named", options);
    return summary_;
  }

 private:
  void check(bool right, const std::string& what) {
    if (!right) {
      summary_.failures.push_back(what);
    }
  }

  std::string difference(const c10::IValue& actual, const c10::IValue& expected) const {
    return summary_.plain.empty() ? tools::first_difference(actual, expected) : "";
  }

  void look_at_reasons(const Placement& placement) {
    for (const Resident& resident : placement.resident_because) {
      const std::string& because = resident.because;
      const bool counts = because == "small" ? resident.bytes < 16_KiB
                                             : because.starts_with("written ") || because.starts_with("handed to ");
      check(counts, resident.name + " stays: " + because);
      summary_.stays[because] += resident.bytes;
    }
    for (const PlacedWeight& weight : placement.weights) {
      for (const Use& use : weight.uses) {
        summary_.taken.insert(use.taken);
      }
    }
  }

  std::uint64_t find_minimum(Options options) {
    options.vram_budget = 1;
    for (int attempt = 0; attempt < 4; ++attempt) { // on a GPU activations are known once a call has been measured
      try {
        const Module module = wrap(read_archive(path_.string(), Weights::on_file), options);
        const std::uint64_t minimum = module.placement().budget.minimum;
        if (minimum >= *options.vram_budget) {
          return *options.vram_budget;
        }
        options.vram_budget = minimum; // what calls take has been measured since
      } catch (const BudgetError& error) {
        check(error.minimum_bytes() > *options.vram_budget, "refused at its own smallest budget");
        options.vram_budget = error.minimum_bytes();
      }
    }
    check(false, "the smallest budget goes on changing");
    return *options.vram_budget;
  }

  void expect_refusal(const Options& options) {
    try {
      wrap(read_archive(path_.string(), Weights::on_file), options);
      check(false, "one byte below the smallest budget was enough");
    } catch (const BudgetError& error) {
      check(error.minimum_bytes() == summary_.minimum, "one byte below the smallest budget names another");
    }
  }

  void look_at(const std::string& label, const Options& options) {
    torch::jit::Module plain = read_archive(path_.string());
    Reference reference(plain, device_);
    Module offloaded = load(path_.string(), options);
    const std::size_t count = std::max<std::size_t>(extent_ == Extent::full ? 3 : 1, calls_.size());
    std::vector<c10::IValue> expected;
    for (std::size_t i = 0; i < count; ++i) {
      const Call& call = calls_[i % calls_.size()];
      expected.push_back(reference.run("forward", call).deepcopy());
      const std::string differs = difference(offloaded.forward(call), expected.back());
      check(differs.empty(), c10::str(label, ", call ", i, ": ", differs));
    }
    compare_state(label, plain, offloaded);
    const Placement placement = offloaded.placement();
    if (!summary_.writes_state) {
      if (extent_ == Extent::full && !options.example_calls.empty()) {
        compare_bytes(label, options);
      }
      call_from_two_threads(label, offloaded, expected);
    }
    const Stats stats = offloaded.stats();
    check(stats.peak_device_bytes <= *options.vram_budget, label + ": over the budget");
    if (label == "smallest") {
      std::uint64_t streams = 0;
      for (const PlacedWeight& weight : placement.weights) {
        streams += weight.segments.front().mode == Mode::resident ? 0 : weight.bytes;
      }
      summary_.streams = static_cast<double>(streams) / static_cast<double>(std::max<std::uint64_t>(summary_.bytes, 1));
    }
  }

  void compare_state(const std::string& label, const torch::jit::Module& plain, const Module& offloaded) {
    for (const auto& attribute : plain.named_attributes()) {
      if (attribute.value.isModule() || attribute.name.empty()) {
        continue;
      }
      const std::string differs = difference(offloaded.attr(attribute.name), attribute.value);
      check(differs.empty(), c10::str(label, ", attribute ", attribute.name, ": ", differs));
    }
  }

  /// The call that is planned for, over and over: what moves is what the plan says.
  void compare_bytes(const std::string& label, const Options& options) {
    Module offloaded = load(path_.string(), options);
    const auto used = [&] {
      const Stats stats = offloaded.stats();
      return stats.bytes_streamed - stats.bytes_ahead;
    };
    const auto call = [&](std::uint64_t times) {
      for (std::uint64_t i = 0; i < times; ++i) {
        offloaded.forward(options.example_calls.back().inputs);
      }
    };
    const Prediction predicted = offloaded.placement().predicted;
    const std::uint64_t calls = (12 + predicted.period - 1) / predicted.period * predicted.period;
    std::uint64_t moved = 0;
    for (const std::uint64_t first : {3, 96}) { // a row of calls may be long before it repeats itself
      call(first);
      const std::uint64_t before = used();
      call(calls);
      moved = (used() - before) / calls;
      if (moved == predicted.streamed_bytes) {
        break;
      }
    }
    check(moved == predicted.streamed_bytes, label + ": " + std::to_string(moved) + " bytes moved at each of " +
                                                 std::to_string(calls) + " calls, " +
                                                 std::to_string(predicted.streamed_bytes) + " planned");
    check(label != "all" || moved == 0, label + ": bytes moved though all is resident");
  }

  void call_from_two_threads(const std::string& label, Module& offloaded, const std::vector<c10::IValue>& expected) {
    std::vector<std::string> differences(2);
    std::vector<std::thread> threads;
    for (std::size_t t = 0; t < differences.size(); ++t) {
      threads.emplace_back([&, t] {
        at::set_num_threads(1); // a setting of each thread, and products round by it
        Module copy = offloaded;
        for (std::size_t i = 0; i < expected.size() && differences[t].empty(); ++i) {
          const std::size_t mine = (i + t) % expected.size();
          try {
            differences[t] = difference(copy.forward(calls_[mine % calls_.size()]), expected[mine]);
          } catch (const std::exception& error) {
            differences[t] = error.what();
          }
        }
      });
    }
    for (std::thread& thread : threads) {
      thread.join();
    }
    for (const std::string& differs : differences) {
      check(differs.empty(), c10::str(label, ", two threads: ", differs));
    }
  }

  const std::filesystem::path path_;
  const c10::Device device_;
  const Extent extent_;
  std::vector<Call> calls_;
  Summary summary_;
};

std::string join(const std::set<std::string>& words) {
  std::string text;
  for (const std::string& word : words) {
    text += (text.empty() ? "" : ", ") + word;
  }
  return text;
}

std::string stays(const Summary& summary) {
  std::string text;
  for (const auto& [because, bytes] : summary.stays) {
    text += (text.empty() ? "" : "; ") + format_bytes(bytes) + " " + because;
  }
  return text.empty() ? "nothing" : text;
}

/// What the test finds of the models, for people: docs/models.md.
std::string table_of(const std::vector<Summary>& summaries) {
  std::ostringstream out;
  out << "| model | weights | smallest budget | streams there | taken as | stays, and why | calls change it |\n"
         "|---|---:|---:|---:|---|---|---|\n";
  for (const Summary& summary : summaries) {
    out << "| " << summary.name << " | " << format_bytes(summary.bytes) << " | " << format_bytes(summary.minimum)
        << " | " << static_cast<int>(summary.streams * 100) << "% | " << join(summary.taken) << " | " << stays(summary)
        << " | " << (summary.writes_state ? "yes" : "no") << " |\n";
  }
  return out.str();
}

/// The page is what stands before the table, and the table. True when it is up to date, as it is when it was written.
bool compare_table(const std::string& path, const std::string& table, bool update) {
  std::ifstream file(path);
  const std::string page((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  const std::string wanted = page.substr(0, page.find("| model |")) + table;
  if (page == wanted) {
    return true;
  }
  if (update) {
    std::ofstream(path) << wanted;
    return true;
  }
  std::cout << path << " is not what was found: run this with --update\n";
  return false;
}

Summary summarise(const std::filesystem::path& path, c10::Device device, Extent extent) {
  try {
    return Matrix(path, device, extent).run();
  } catch (const std::exception& error) {
    Summary summary;
    summary.name = path.stem().string();
    summary.failures.emplace_back(error.what());
    return summary;
  }
}

} // namespace
} // namespace offload::test

int main(int argc, char** argv) {
  using namespace offload::test;
  CLI::App app{"Checks every model of some folders at three budgets."};
  std::vector<std::string> folders;
  std::string device = "cpu";
  std::string table;
  bool update = false;
  bool brief = false;
  offload::tools::ModelArguments libraries;
  app.add_option("FOLDER", folders)->required();
  app.add_option("--device", device);
  app.add_option("--library", libraries.libraries, "defines operators of the models")->allow_extra_args(false);
  app.add_flag("--brief", brief, "one budget, one call each");
  app.add_option("--table", table, "a page that must hold what is found");
  app.add_flag("--update", update, "write it there");
  return offload::tools::run_command(app, argc, argv, [&] {
    libraries.load_libraries();
    at::set_num_threads(1); // models are small, and processors shared
    std::vector<Summary> summaries;
    std::size_t failures = 0;
    for (const auto& path : models_in(folders)) {
      summaries.push_back(summarise(path, c10::Device(device), brief ? Extent::brief : Extent::full));
      const Summary& summary = summaries.back();
      failures += summary.failures.size();
      std::cout << summary.name << ": smallest " << summary.minimum << " of " << summary.bytes << ", "
                << static_cast<int>(summary.streams * 100) << "% streams, stays: " << stays(summary)
                << (summary.plain.empty() ? "" : "; the plain model " + summary.plain)
                << (summary.failures.empty() ? "" : ": FAILED") << std::endl;
      for (const std::string& failure : summary.failures) {
        std::cout << "  FAILED: " << failure << std::endl;
      }
    }
    failures += table.empty() || compare_table(table, table_of(summaries), update) ? 0 : 1;
    std::cout << summaries.size() << " models, " << failures << " failures\n";
    return failures == 0 ? offload::tools::kDone : offload::tools::kWrongResult;
  });
}
