#pragma once

#include <atomic>
#include <filesystem>
#include <map>
#include <random>
#include <string>
#include <vector>

#include <offload/module.h>

#include "archives.h"

namespace offload::test {

/// What goes on in a server beside the calls of a module: children of the process, other modules that come and go,
/// files that change under them, memory that the system refuses.
class Bystander {
 public:
  /// `expected` are the outputs of `calls` by the archive at `path`, which writes no state; `options` are those under
  /// which other modules of it are loaded.
  Bystander(std::filesystem::path path, Options options, std::vector<Call> calls, std::vector<c10::IValue> expected,
            std::uint64_t seed);

  /// Does one of these, drawn at random. What went wrong; empty when nothing did.
  std::string act(Module module);

  /// How often each was done.
  const std::map<std::string, int>& done() const { return done_; }

  /// True when memory has been refused: to anybody, in an error of theirs.
  bool has_refused() const { return refused_; }

 private:
  std::string fork_off(Module& module);
  std::string come_and_go(Module& module);
  std::string change_the_file(Module& module);
  std::string refuse_memory(Module& module);
  std::string call(Module& module, std::size_t which) const;

  const std::filesystem::path path_;
  const Options options_;
  const std::vector<Call> calls_;
  const std::vector<c10::IValue> expected_;
  std::mt19937_64 random_;
  std::map<std::string, int> done_;
  std::atomic<bool> refused_ = false;
};

} // namespace offload::test
