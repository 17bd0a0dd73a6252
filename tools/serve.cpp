// serve: answers requests of the Open Inference Protocol for models that share one budget (docs/serving.md).

#include <tools/cli.h>
#include <tools/inputs.h>
#include <tools/serve_server.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cctype>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <exception>
#include <filesystem>
#include <iostream>
#include <map>
#include <memory>
#include <optional>
#include <sstream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace {

using offload::InputError;

struct Arguments {
  offload::tools::ServeOptions serve;
  std::vector<std::string> models;
  std::vector<std::string> examples;
  std::string body = "64MiB";
  std::string bodies = "1GiB";
  std::string slowest = "64KiB";
  bool until_eof = false;
  int patience = 10;
  int idle = 60;

  void add_to(CLI::App& app) {
    app.add_option("--model", models, "NAME=PATH of a TorchScript archive; once for each")
        ->take_all()
        ->allow_extra_args(false)
        ->required();
    app.add_option("--example", examples,
                   "NAME='int64[1,64]<32000 float32[2]': inputs of a call, made before any other; "
                   "tells what the metadata says of shapes")
        ->take_all()
        ->allow_extra_args(false);
    app.add_option("--port", serve.port, "0 takes any free one")->check(CLI::Range(0, 65535))->capture_default_str();
    app.add_option("--bind", serve.bind, "the address to listen at")->capture_default_str();
    app.add_option("--calls", serve.calls, "calls at the same time, of all models")
        ->check(CLI::Range(1, 64))
        ->capture_default_str();
    app.add_option("--queue", serve.queue, "calls that may wait besides")
        ->check(CLI::Range(0, 100000))
        ->capture_default_str();
    app.add_option("--connections", serve.connections, "connections at the same time")
        ->check(CLI::Range(1, 900))
        ->capture_default_str();
    app.add_option("--body", body, "most bytes of a request's body")->capture_default_str();
    app.add_option("--bodies", bodies, "most bytes of all of them at the same time")->capture_default_str();
    app.add_option("--patience", patience, "seconds that a client may take to send a head, and to begin with the rest")
        ->check(CLI::Range(1, 3600))
        ->capture_default_str();
    app.add_option("--slowest", slowest, "bytes a second that it has to send and to take after that")
        ->capture_default_str();
    app.add_flag("--until-eof", until_eof, "end as at SIGTERM when standard input ends: with whoever has started this");
    app.add_option("--idle", idle, "seconds that a connection may wait for its next request")
        ->check(CLI::Range(1, 86400))
        ->capture_default_str();
  }

  offload::tools::ServeOptions options() const {
    offload::tools::ServeOptions options = serve;
    options.connection.body_bytes = parse("--body", body);
    options.bodies_bytes = parse("--bodies", bodies);
    if (options.bodies_bytes < options.connection.body_bytes) {
      throw InputError("--bodies " + bodies + " is less than --body " + body +
                       ": a request of that size would never fit");
    }
    options.connection.slowest = parse("--slowest", slowest);
    if (options.connection.slowest == 0 || options.connection.body_bytes == 0) {
      throw InputError("--slowest and --body have to be more than 0");
    }
    options.connection.patience = std::chrono::seconds(patience);
    options.connection.idle = std::chrono::seconds(idle);
    return options;
  }

  static std::uint64_t parse(const char* option, const std::string& text) {
    try {
      return offload::parse_bytes(text);
    } catch (const InputError& error) {
      throw InputError(std::string(option) + ": " + error.what());
    }
  }
};

/// "NAME=VALUE" of `option`, whose names can stand in a path.
std::pair<std::string, std::string> split(const std::string& option, const std::string& text) {
  const std::size_t equals = text.find('=');
  const std::string name = text.substr(0, equals);
  const bool good = !name.empty() && std::all_of(name.begin(), name.end(), [](unsigned char c) {
    return std::isalnum(c) != 0 || c == '_' || c == '-' || c == '.';
  });
  if (equals == std::string::npos || equals + 1 == text.size() || !good) {
    throw InputError(option + " '" + text + "': NAME=" + (option == "--model" ? "PATH" : "INPUTS") +
                     " was wanted, with letters, digits, '_', '-' and '.' in NAME");
  }
  return {name, text.substr(equals + 1)};
}

offload::ExampleCall example_of(const std::string& inputs, c10::Device device) {
  offload::ExampleCall call;
  std::istringstream text(inputs);
  for (std::string input; text >> input;) {
    call.inputs.emplace_back(
        offload::tools::make_input(offload::tools::parse_input(input), call.inputs.size(), device));
  }
  return call;
}

offload::tools::ServedModels load_models(const Arguments& arguments, const offload::Options& options) {
  std::vector<std::pair<std::string, std::string>> paths;
  std::map<std::string, std::vector<offload::ExampleCall>> examples;
  for (const std::string& model : arguments.models) {
    paths.push_back(split("--model", model));
    if (!examples.try_emplace(paths.back().first).second) {
      throw InputError("--model: there are two of the name '" + paths.back().first + "'");
    }
  }
  for (const std::string& example : arguments.examples) {
    const auto [name, inputs] = split("--example", example);
    const auto found = examples.find(name);
    if (found == examples.end()) {
      throw InputError("--example '" +
                       std::string(example).append("': there is no --model of the name '" + name + "'"));
    }
    found->second.push_back(example_of(inputs, options.pool->device()));
  }
  offload::tools::ServedModels models;
  for (const auto& [name, path] : paths) {
    offload::Options own = options;
    own.example_calls = examples.at(name);
    models.emplace(name, std::make_unique<offload::tools::ServedModel>(name, path, own));
  }
  return models;
}

/// SIGTERM and SIGINT end the server in order, and the process where there is no server yet; a second one ends it at
/// once. Made before any other thread: all of them leave these signals to one of its own.
class Signals {
 public:
  Signals() {
    sigemptyset(&set_);
    sigaddset(&set_, SIGTERM);
    sigaddset(&set_, SIGINT);
    pthread_sigmask(SIG_BLOCK, &set_, nullptr);
    thread_ = std::thread([this] { handle(); });
  }
  ~Signals() {
    ended_ = true;
    pthread_kill(thread_.native_handle(), SIGINT); // which is waited for, not handled
    thread_.join();
  }
  Signals(const Signals&) = delete;
  Signals& operator=(const Signals&) = delete;

  /// The server lives as long as this.
  void stop_at_one(offload::tools::InferenceServer& server) { server_ = &server; }

 private:
  void handle() {
    int signal = 0;
    sigwait(&set_, &signal);
    offload::tools::InferenceServer* server = server_;
    if (server != nullptr && !ended_) {
      server->stop();
      sigwait(&set_, &signal);
    }
    if (!ended_) {
      _exit(128 + signal);
    }
  }

  sigset_t set_{};
  std::atomic<bool> ended_{false};
  std::atomic<offload::tools::InferenceServer*> server_{nullptr};
  std::thread thread_;
};

/// Has the process end as at SIGTERM when its standard input does.
void end_with_input() {
  std::thread([] {
    std::array<char, 256> ignored{};
    ssize_t bytes = 0;
    do {
      bytes = read(STDIN_FILENO, ignored.data(), ignored.size());
    } while (bytes > 0 || (bytes < 0 && errno == EINTR));
    kill(getpid(), SIGTERM);
  }).detach();
}

} // namespace

int main(int argc, char** argv) {
  CLI::App app{
      "Answers requests of the Open Inference Protocol, version 2, for TorchScript models that share one budget."};
  offload::tools::DeviceArguments device;
  device.add_to(app);
  Arguments arguments;
  arguments.add_to(app);
  return offload::tools::run_command(app, argc, argv, [&] {
    const offload::tools::ServeOptions serve = arguments.options();
    const offload::Options given = device.device_options();
    std::optional<Signals> signals(std::in_place); // ends before the server
    if (arguments.until_eof) {
      end_with_input();
    }
    device.load_libraries();
    offload::PoolOptions budgets;
    budgets.device = given.device;
    budgets.vram_budget = given.vram_budget;
    budgets.host_budget = given.host_budget;
    budgets.pinned_budget = given.pinned_budget;
    budgets.concurrency = serve.calls;
    offload::Options options = given;
    options.vram_budget.reset();
    options.host_budget.reset();
    options.pinned_budget.reset();
    options.device.reset();
    options.pool = std::make_shared<offload::Pool>(budgets);
    offload::tools::InferenceServer server(serve, options.pool, load_models(arguments, options));
    signals->stop_at_one(server);
    std::cout << "listening on " << serve.bind << ":" << server.port() << std::endl;
    server.run();
    signals.reset();
    return offload::tools::kDone;
  });
}
