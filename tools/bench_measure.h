#pragma once

#include <c10/core/Device.h>

#include <functional>
#include <optional>
#include <string>

#include <tools/bench_report.h>

namespace offload::tools {

struct MeasureOptions {
  c10::Device device{c10::kCPU};
  std::optional<std::uint64_t> ring_bytes; ///< default: default_ring_bytes() of the stack
  int calls = 20;                          ///< of ours, at each budget
  double link_bytes_per_us = 0;            ///< of a host, where it is not measured again for each row
  bool against_auto = true;
  bool against_gpu = true; ///< printed; it is measured in any case, since the limit and the check need it
  bool against_cpu = true;
  std::function<void(const std::string&)> progress;

  void report(const Case& stack, const std::string& what) const {
    if (progress) {
      progress(stack.title + ": " + what);
    }
  }
};

/// What the machine and this program are, and the link as it is now. Takes 512 MiB for a moment.
Setup describe_setup(c10::Device device);

/// Measures one stack at all its shares. The model is loaded, and page-locked, once. Throws what the library throws.
TableResult measure_case(const Case& stack, const MeasureOptions& options);

/// The stack all streamed from ordinary memory, with `pinned_bytes` page-locked. For a GPU.
StagedResult measure_staged(const Case& stack, std::uint64_t pinned_bytes, const MeasureOptions& options);

} // namespace offload::tools
