#pragma once

#include <algorithm>
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include <offload/placement.h>
#include <tools/bench_blocks.h>
#include <tools/bench_cases.h>
#include <tools/bench_rule_rows.h>
#include <tools/monotone.h>
#include <tools/prediction_errors.h>

namespace offload::tools {

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

/// A model from a file at a share of its size.
struct ModelResult {
  std::string name;
  std::uint64_t weight_bytes = 0;
  std::uint64_t budget_bytes = 0; ///< a tenth of the weights, or the least that works, and what activations take
  std::uint64_t minimum_bytes = 0;
  std::uint64_t reserve_bytes = 0;
  std::uint64_t planned_bytes = 0;  ///< over the link, per call
  std::uint64_t used_bytes = 0;     ///< over the link, used by all calls together
  std::uint64_t in_place_bytes = 0; ///< of rows that were looked up in host memory, all calls together
  std::uint64_t peak_device_bytes = 0;
  std::uint64_t misses = 0;
  Blocks blocks; ///< bounded by the planned bytes on the link
  double predicted_us = 0;
  bool identical = false; ///< each output has the bits of the reference

  bool right() const { return identical && used_bytes == planned_bytes * blocks.calls(); }
};

/// What calls gave at one budget.
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
  Blocks blocks;
  double predicted_us = 0;
  std::uint64_t planned_bytes = 0; ///< over the link, per call
  std::uint64_t issued_bytes = 0;  ///< over the link, all calls together, counted at the link
  std::uint64_t used_bytes = 0;    ///< of them and of what was there before, what these calls read
  std::uint64_t misses = 0;
  double stall_us = 0;
  bool identical = false; ///< the output has the bits of the reference
  Times auto_us;          ///< the synchronous load and unload of the record, at the same share

  bool bytes_as_planned() const { return used_bytes == planned_bytes * blocks.calls(); }
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

  /// What has to cross the link: the weights beyond the row's share.
  std::uint64_t bytes_beyond(const RowResult& row) const;
  /// The same with the ring counted as well: less has to.
  std::uint64_t bytes_beyond_ring(const RowResult& row) const;
};

/// All layers streamed through `pinned_bytes` of staging buffers from ordinary memory.
struct StagedResult {
  Case stack;
  std::uint64_t pinned_bytes = 0;
  RowResult row; ///< bounded by the planned bytes on the slower of link and host copy
};

/// Some callers at the same time, each with one call after the other.
/// Calls that arrived at random, as from many users, whether or not those before them had ended.
struct OpenLoop {
  double load = 0;       ///< of the calls a second that callers reach who make one after the other
  Times waited_us;       ///< from a call's arrival to its output, less what one takes that is alone
  bool identical = true; ///< to the reference
};

struct CallersRow {
  std::int64_t layers_on_gpu = 0;
  int callers = 1;
  double round_us = 0;     ///< in which each of them makes a call
  double alone_us = 0;     ///< of one caller, at the same share
  double bytes_a_call = 0; ///< over the link
  offload::PredictedRound predicted;
  bool identical = false;
  std::vector<OpenLoop> open;

  /// What a round takes at the least: one call, or the computations of all.
  double limit_us(double plain_us) const { return std::max(alone_us, callers * plain_us); }
};

struct CallersResult {
  Case stack;
  double plain_us = 0;
  std::vector<CallersRow> rows;
};

struct Report {
  Setup setup;
  std::vector<TableResult> tables;
  std::optional<StagedResult> staged;
  std::vector<CallersResult> callers;
  std::vector<ModelResult> models;
  std::vector<ErrorRow> errors;   ///< of predictions; then there is nothing of the above
  std::vector<WholeRange> ranges; ///< likewise
  std::vector<RuleRow> rules;     ///< of other placements; then there is nothing else

  /// "TABLE, N layers on the GPU: what is wrong", for the first row that is not what it must be; empty when all are.
  std::string first_failure() const;
};

nlohmann::ordered_json case_json(const Case& stack);
std::string to_markdown(const Report& report);
std::string to_json(const Report& report);
std::string to_svg(const Report& report);

} // namespace offload::tools
