#pragma once

// A model that is served, with what is known of its inputs and outputs, and how its calls went.

#include <nlohmann/json_fwd.hpp>

#include <chrono>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include <offload/module.h>
#include <tools/serve_protocol.h>

namespace offload::tools {

/// Calls that ended in one way, and the time that they took.
struct Tally {
  std::uint64_t count = 0;
  std::chrono::nanoseconds time{0};
};

struct CallTimes {
  Tally succeeded;
  Tally failed;
  Tally waited;   ///< for a thread that calls
  Tally computed; ///< of those that succeeded: arguments to the device, the call, and outputs back
};

/// Any thread may call any member at any time. Calls compute on the caller's CUDA stream.
class ServedModel {
 public:
  /// Throws InputError for a signature that the protocol has no form for, and what an example call raises. Example
  /// calls tell what shapes and outputs are; they are among `options` as well, so that the plan knows them.
  ServedModel(std::string name, const std::string& path, const Options& options);

  const std::string& name() const { return name_; }
  const Module& module() const { return module_; }

  /// Makes the call that `request` asks for, and gives all of its outputs. `waited` is for the statistics. Throws
  /// RequestError: 400 when the arguments are not what the model takes, 503 when the call finds no room in the budget,
  /// 500 with what the model raises.
  InferAnswer infer(const InferRequest& request, std::chrono::nanoseconds waited);

  CallTimes times() const;
  nlohmann::json metadata() const;
  nlohmann::json config() const;
  nlohmann::json statistics() const;

 private:
  /// As the metadata has it.
  struct Described {
    std::string datatype;
    std::vector<std::int64_t> shape;
  };
  /// Adds what a tensor shows to what is known: sizes that differ become -1.
  static void show(std::map<std::string, Described>& known, const WireTensor& tensor);

  void show_examples(const Options& options);
  InferAnswer call(const InferRequest& request);

  std::string name_;
  Module module_;
  mutable std::mutex mutex_;
  std::map<std::string, Described> inputs_; // of calls that succeeded
  std::vector<std::string> output_names_;   // in their order
  std::map<std::string, Described> outputs_;
  CallTimes times_;
  std::int64_t last_call_ms_ = 0; // since 1970
};

} // namespace offload::tools
