#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include <tools/bench_cases.h>

namespace offload::tools {

/// Times of single calls, in the order in which they were made.
using Times = std::vector<double>;

/// The upper one of the two in the middle where their number is even. 0 for none.
double median(Times times);

/// The machine and the way a result came about.
struct Setup {
  std::string gpu; ///< empty where there is none
  std::string cpu;
  unsigned threads = 0;
  std::uint64_t memory_bytes = 0;
  std::string torch;
  std::string driver;
  std::string date;
  std::string commit;
  std::string command;
  double link_bytes_per_us = 0; ///< median of page-locked copies of 256 MiB; on a host, of copies within it

  /// As the record writes it: "CPU, 64GB memory, GPU".
  std::string hardware() const;
  bool host_only() const { return gpu.empty(); }
};

/// What a window of calls from an idle link to an idle link gave, at one budget.
struct RowResult {
  std::int64_t layers_on_gpu = 0;
  std::uint64_t share_bytes = 0;  ///< of the weights that the row may keep on the device
  std::uint64_t budget_bytes = 0; ///< share, ring, activations and fixed
  std::uint64_t spare_bytes = 0;  ///< of the budget beside the share for weights: the stated ring
  std::uint64_t ring_bytes = 0;   ///< as the plan has made it
  std::uint64_t reserve_bytes = 0;
  std::uint64_t fixed_bytes = 0;
  std::uint64_t peak_device_bytes = 0; ///< as the library counts it, since the model was loaded
  std::int64_t driver_bytes = 0;       ///< as the driver counts it, since before the load; outputs included
  Times call_us;
  double window_us = 0;
  double predicted_us = 0;
  std::uint64_t planned_bytes = 0; ///< over the link, per call
  std::uint64_t issued_bytes = 0;  ///< over the link, all calls together, counted at the link
  std::uint64_t misses = 0;
  double stall_us = 0;
  bool identical = false; ///< the output has the bits of the reference
  Times auto_us;          ///< the synchronous load and unload of the record, at the same share
  Times plain_us;         ///< the reference, called in turn with ours; where nothing streams and both find room

  /// The larger of the median and the window divided by its calls: neither hides what the other shows. The median
  /// alone where plain calls were made in turn.
  double time_us() const;
  bool bytes_as_planned() const { return issued_bytes == planned_bytes * call_us.size(); }
  bool right() const { return identical && bytes_as_planned(); }
};

struct TableResult {
  Case stack;
  Times plain_us; ///< the reference wholly on the device; on a host, on the host
  Times fused_us; ///< torch::jit forward wholly on the device
  Times cpu_us;   ///< the reference on the host, where there is a GPU to compare with
  bool show_plain = true;
  std::string measured_as; ///< title of the table with the same work, when it was not measured again
  std::vector<RowResult> rows;

  /// The larger of the plain time and what the weights beyond the row's share take on the link.
  double limit_us(const RowResult& row, double link_bytes_per_us) const;
  /// The same with the ring counted as well: less has to cross the link.
  double limit_ring_counted_us(const RowResult& row, double link_bytes_per_us) const;
};

/// All layers streamed through `pinned_bytes` of staging buffers from ordinary memory.
struct StagedResult {
  Case stack;
  std::uint64_t pinned_bytes = 0;
  double plain_us = 0;
  RowResult row;
  double link_bytes_per_us = 0;      ///< as in Setup; each the mean of one measurement before the calls and one after
  double host_copy_bytes_per_us = 0; ///< likewise

  /// The larger of the plain time and what the planned bytes take on the slower of link and host copy.
  double limit_us() const;
};

struct Report {
  Setup setup;
  std::vector<TableResult> tables;
  std::optional<StagedResult> staged;

  /// "TABLE, N layers on the GPU: what is wrong", for the first row that is not what it must be; empty when all are.
  std::string first_failure() const;
};

std::string to_markdown(const Report& report);
std::string to_json(const Report& report);
std::string to_svg(const Report& report);

} // namespace offload::tools
