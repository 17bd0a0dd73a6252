#include <tools/bench_callers.h>
#include <tools/bench_errors_report.h>
#include <tools/bench_models.h>
#include <tools/bench_report.h>
#include <tools/numbers.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <sstream>

#include <offload/bytes.h>

namespace offload::tools {

std::string Setup::hardware() const {
  const std::uint64_t gigabytes = (memory_bytes + (1_GiB / 2)) / 1_GiB;
  return cpu + ", " + std::to_string(gigabytes) + "GB memory" + (host_only() ? "" : ", " + gpu);
}

namespace {

std::uint64_t beyond(const TableResult& table, std::uint64_t device_bytes) {
  const std::uint64_t weights = table.stack.weight_bytes();
  return weights - std::min(weights, device_bytes);
}

} // namespace

std::uint64_t TableResult::bytes_beyond(const RowResult& row) const { return beyond(*this, row.share_bytes); }

std::uint64_t TableResult::bytes_beyond_ring(const RowResult& row) const {
  return beyond(*this, row.share_bytes + row.spare_bytes);
}

namespace {

std::string failure_of(const RowResult& row) {
  if (!row.identical) {
    return "the output is not that of the reference";
  }
  if (!row.bytes_as_planned()) {
    return std::to_string(row.used_bytes) + " streamed bytes were used in " + std::to_string(row.blocks.calls()) +
           " calls where the plan said " + std::to_string(row.planned_bytes) + " a call";
  }
  return "";
}

constexpr const char* kHowToRead =
    R"(A budget is the share of the weights, a ring (stated with each table), and what activations take. Calls are made back to
back in blocks of a third of a second or more, from an idle link to an idle link, and what is said of a row is the median of its
blocks. average_ms is a block's time divided by its calls, every byte that it put under way included; median_ms is that of its
calls, from output to output; waited_ms is that of calls which the host makes only when the output of the one before is there. The
limit is the larger of the plain time and the weights beyond the share over the link; plain calls and the link are measured right
before and after each block, since clocks drift and machines share their links. The ratio takes the larger of average and median.
Where all is resident, plain calls were made in turn with ours, and the ratio is that of the medians. "Ring counted" takes the
ring, too, off what has to cross the link: stricter, and where the link is the limit out of reach of anything that streams through
a ring. Auto is the record's way, measured here: each layer that is not on the GPU is brought there by a synchronous copy, used,
and dropped.
)";

/// What was measured where.
void write_machine(const Setup& setup, std::ostream& out) {
  if (!setup.host_only()) {
    out << "- GPU: " << setup.gpu << ", driver " << setup.driver << "\n";
  }
  out << "- CPU: " << setup.cpu << ", " << setup.threads << " threads, " << format_bytes(setup.memory_bytes)
      << "\n- torch " << setup.torch << ", commit " << (setup.commit.empty() ? "unknown" : setup.commit) << ", "
      << setup.date << "\n- command: `" << setup.command
      << "`\n- link: " << number("%.2f GB/s", setup.link_bytes_per_us / 1e3)
      << (setup.host_only() ? " (copies within the host)"
                            : " (median of page-locked host-to-device copies of 256 MiB)");
}

void write_setup(const Report& report, std::ostream& out) {
  const Setup& setup = report.setup;
  out << "# offload-bench\n\n";
  if (!report.errors.empty() || !report.rules.empty()) { // models as they are, nothing of the record
    write_machine(setup, out);
    out << "\n";
    return;
  }
  if (setup.host_only()) {
    out << "**Host only: sizes reduced, not comparable with the record.** The host stands in for a device: the budget "
           "is "
           "memory beside\nthe host store, the link a copy within the host. What fits a cache is faster than this "
           "link.\n\n";
  }
  write_machine(setup, out);
  out << "\n\n" << kHowToRead;
}

struct Line {
  const char* mode;
  std::string on_gpu;
  std::string on_cpu;
  double average_us;
  double percent;
  double record_ms;
};

/// The record's columns, then the record's own time.
void write_record_columns(const Setup& setup, const TableResult& table, const Line& line, std::ostream& out) {
  const double cpu_us = setup.host_only() ? 0 : median(table.cpu_us);
  out << "| " << setup.hardware() << " | " << line.mode << " | " << table.stack.layers << " | "
      << format_bytes(table.stack.layer_bytes()) << " | " << format_bytes(table.stack.weight_bytes()) << " | "
      << line.on_gpu << " | " << line.on_cpu << " | " << ms(line.average_us) << " | "
      << (cpu_us > 0 ? number("%.1f", cpu_us / line.average_us) : "-") << " | " << number("%.1f%%", line.percent)
      << " | " << (line.record_ms > 0 ? number("%g", line.record_ms) : "-") << " |";
}

double record_ms(const TableResult& table, Residence residence, std::int64_t on_gpu) {
  const RecordRow* row = table.stack.find_record(residence, on_gpu);
  return row ? row->average_ms : 0;
}

void write_row(const Setup& setup, const TableResult& table, const RowResult& row, std::ostream& out) {
  const Case& stack = table.stack;
  const double average_us = row.blocks.average_us();
  write_record_columns(setup, table,
                       {"Offload", std::to_string(row.layers_on_gpu), std::to_string(stack.layers - row.layers_on_gpu),
                        average_us, 100.0 * static_cast<double>(row.layers_on_gpu) / static_cast<double>(stack.layers),
                        record_ms(table, Residence::partly, row.layers_on_gpu)},
                       out);
  const std::uint64_t bytes = table.bytes_beyond(row);
  const std::string failure = failure_of(row);
  out << ' ' << ms(median(row.blocks.call_us())) << " | " << ms(median(row.blocks.waited_us)) << " | "
      << ms(row.blocks.limit_us(bytes)) << " | " << number("%.3f", row.blocks.ratio_to_limit(bytes)) << " | "
      << number("%.3f", row.blocks.ratio_to_limit(table.bytes_beyond_ring(row))) << " | " << ms(row.predicted_us)
      << " | " << number("%.3f", static_cast<double>(row.planned_bytes) / 1e9) << " | ";
  if (!setup.host_only()) {
    out << ms(median(row.auto_us)) << " | ";
  }
  out << row.misses << " | " << format_bytes(row.peak_device_bytes) << " of " << format_bytes(row.budget_bytes) << " | "
      << (failure.empty() ? "bits and bytes right" : "**" + failure + "**") << " |\n";
}

void write_table(const Setup& setup, const TableResult& table, std::ostream& out) {
  const Case& stack = table.stack;
  out << "\n## " << stack.title << "\n\n";
  if (!stack.record.empty()) {
    out << "record_ms is that of " << stack.record.front().hardware
        << " in the mode of the same name (Offload: Auto). ";
  }
  if (!table.rows.empty()) {
    out << "Ring " << format_bytes(table.rows.front().spare_bytes) << ". ";
  }
  if (!table.fused_us.empty() && table.show_plain) {
    out << "Fused `forward` of torch::jit: " << ms(median(table.fused_us)) << " ms. ";
  }
  if (!table.measured_as.empty()) {
    out << "The same work as \"" << table.measured_as << "\", measured once.";
  }
  out << "\n\n| hardware | device(Mode) | layers | layer_size | model_size | layers_on_gpu | layers_on_cpu | "
         "average_ms | "
         "acceleration | percent_on_gpu | record_ms | median_ms | waited_ms | limit_ms | ratio to limit | ring counted "
         "| "
         "predicted_ms | "
         "GB a call | "
      << (setup.host_only() ? "" : "Auto_ms | ") << "misses | peak of budget | check |\n|";
  const int columns = setup.host_only() ? 21 : 22;
  for (int i = 0; i < columns; ++i) {
    out << (i < 2 || i == columns - 1 ? "---|" : "---:|");
  }
  out << '\n';
  const std::string rest = [&] {
    std::string empty;
    for (int i = 11; i < columns; ++i) {
      empty += " - |";
    }
    return empty + "\n";
  }();
  const Times& host_us = setup.host_only() ? table.plain_us : table.cpu_us;
  if (!host_us.empty()) {
    write_record_columns(setup, table, {"CPU", "-", "-", median(host_us), 0, record_ms(table, Residence::cpu, 0)}, out);
    out << rest;
  }
  for (const RowResult& row : table.rows) {
    write_row(setup, table, row, out);
  }
  if (!setup.host_only() && table.show_plain) {
    write_record_columns(setup, table,
                         {"GPU", "-", "-", median(table.plain_us), 100, record_ms(table, Residence::gpu, stack.layers)},
                         out);
    out << rest;
  }
}

void write_staged(const StagedResult& staged, std::ostream& out) {
  const RowResult& row = staged.row;
  const Blocks& blocks = row.blocks;
  const double streamed = static_cast<double>(row.planned_bytes); // some layers may stay where the ring needs less
  const std::string failure = failure_of(row);
  out << "\n## Staged: weights in ordinary memory, " << format_bytes(staged.pinned_bytes) << " page-locked\n\n"
      << staged.stack.title
      << ", all streamed. The limit is what streams over the slower of link and host copy, "
         "each\nmeasured before and after each block.\n\n"
      << "| average_ms | median_ms | limit_ms | ours GB/s | link GB/s | host copy GB/s | our rate over the limit's | "
         "misses | "
         "check |\n|---:|---:|---:|---:|---:|---:|---:|---:|---|\n| "
      << ms(blocks.average_us()) << " | " << ms(median(blocks.call_us())) << " | "
      << ms(blocks.limit_us(row.planned_bytes)) << " | " << number("%.2f", streamed / blocks.time_us() / 1e3) << " | "
      << number("%.2f", blocks.link_bytes_per_us() / 1e3) << " | "
      << number("%.2f", blocks.host_copy_bytes_per_us() / 1e3) << " | "
      << number("%.3f", 1 / blocks.ratio_to_limit(row.planned_bytes)) << " | " << row.misses << " | "
      << (failure.empty() ? "bits and bytes right" : "**" + failure + "**") << " |\n";
}

using Json = nlohmann::ordered_json;

Json row_json(const RowResult& row) {
  return {{"layers_on_gpu", row.layers_on_gpu},
          {"share_bytes", row.share_bytes},
          {"budget_bytes", row.budget_bytes},
          {"spare_bytes", row.spare_bytes},
          {"ring_bytes", row.ring_bytes},
          {"reserve_bytes", row.reserve_bytes},
          {"fixed_bytes", row.fixed_bytes},
          {"peak_device_bytes", row.peak_device_bytes},
          {"driver_bytes", row.driver_bytes},
          {"time_us", row.blocks.time_us()},
          {"median_us", median(row.blocks.call_us())},
          {"window_us", row.blocks.window_us()},
          {"call_us", row.blocks.call_us()},
          {"waited_us", row.blocks.waited_us},
          {"plain_us", row.blocks.plain_us()},
          {"predicted_us", row.predicted_us},
          {"planned_bytes_per_call", row.planned_bytes},
          {"issued_bytes", row.issued_bytes},
          {"used_bytes", row.used_bytes},
          {"misses", row.misses},
          {"stall_us", row.stall_us},
          {"identical", row.identical},
          {"bytes_as_planned", row.bytes_as_planned()},
          {"auto_us", row.auto_us},
          {"blocks", blocks_json(row.blocks)}};
}

} // namespace

nlohmann::ordered_json case_json(const Case& stack) {
  return {{"title", stack.title},
          {"reduced", stack.reduced},
          {"layers", stack.layers},
          {"features", stack.features},
          {"input_rows", stack.input_rows},
          {"dtype", stack.dtype},
          {"layer_bytes", stack.layer_bytes()},
          {"weight_bytes", stack.weight_bytes()}};
}

std::string Report::first_failure() const {
  for (const TableResult& table : tables) {
    for (const RowResult& row : table.rows) {
      if (!row.right()) {
        return table.stack.title + ", " + std::to_string(row.layers_on_gpu) +
               " layers on the device: " + failure_of(row);
      }
    }
  }
  for (const ModelResult& model : models) {
    if (!model.right()) {
      return model.name + (model.identical
                               ? ": " + std::to_string(model.used_bytes) + " bytes were used where the plan said " +
                                     std::to_string(model.planned_bytes) + " a call"
                               : ": the output is not that of the reference");
    }
  }
  for (const CallersResult& result : callers) {
    for (const CallersRow& row : result.rows) {
      const bool identical = row.identical && std::all_of(row.open.begin(), row.open.end(),
                                                          [](const OpenLoop& open) { return open.identical; });
      if (!identical) {
        return result.stack.title + ", " + std::to_string(row.callers) + " callers: other bits than the reference";
      }
    }
  }
  const std::string failure = errors.empty() ? tools::first_failure(rules) : tools::first_failure(errors);
  return staged && !staged->row.right() ? "staged: " + failure_of(staged->row) : failure;
}

std::string to_markdown(const Report& report) {
  std::ostringstream out;
  write_setup(report, out);
  for (const TableResult& table : report.tables) {
    write_table(report.setup, table, out);
  }
  if (report.staged) {
    write_staged(*report.staged, out);
  }
  for (const CallersResult& result : report.callers) {
    write_callers(result, out);
  }
  if (!report.models.empty()) {
    write_models(report.models, out);
  }
  if (!report.errors.empty()) {
    write_errors(report.errors, out);
  }
  if (!report.ranges.empty()) {
    write_monotone(report.ranges, report.errors, out);
  }
  if (!report.rules.empty()) {
    write_rules(report.rules, out);
  }
  return out.str();
}

std::string to_json(const Report& report) {
  const Setup& setup = report.setup;
  Json json;
  json["setup"] = {{"gpu", setup.gpu},
                   {"cpu", setup.cpu},
                   {"threads", setup.threads},
                   {"memory_bytes", setup.memory_bytes},
                   {"torch", setup.torch},
                   {"driver", setup.driver},
                   {"date", setup.date},
                   {"commit", setup.commit},
                   {"command", setup.command},
                   {"link_bytes_per_us", setup.link_bytes_per_us},
                   {"host_only", setup.host_only()}};
  json["tables"] = Json::array();
  for (const TableResult& table : report.tables) {
    Json entry = case_json(table.stack);
    entry["measured_as"] = table.measured_as;
    entry["plain_us"] = table.plain_us;
    entry["fused_us"] = table.fused_us;
    entry["cpu_us"] = table.cpu_us;
    entry["record"] = Json::array();
    for (const RecordRow& row : table.stack.record) {
      const char* mode = row.residence == Residence::cpu ? "CPU" : row.residence == Residence::gpu ? "GPU" : "Auto";
      entry["record"].push_back({{"hardware", row.hardware},
                                 {"device", mode},
                                 {"layers_on_gpu", row.layers_on_gpu},
                                 {"average_ms", row.average_ms}});
    }
    entry["rows"] = Json::array();
    for (const RowResult& row : table.rows) {
      Json line = row_json(row);
      line["limit_us"] = row.blocks.limit_us(table.bytes_beyond(row));
      line["ratio_to_limit"] = row.blocks.ratio_to_limit(table.bytes_beyond(row));
      line["limit_ring_counted_us"] = row.blocks.limit_us(table.bytes_beyond_ring(row));
      line["ratio_ring_counted"] = row.blocks.ratio_to_limit(table.bytes_beyond_ring(row));
      entry["rows"].push_back(std::move(line));
    }
    json["tables"].push_back(std::move(entry));
  }
  if (report.staged) {
    json["staged"] = case_json(report.staged->stack);
    json["staged"]["pinned_bytes"] = report.staged->pinned_bytes;
    const RowResult& row = report.staged->row;
    json["staged"]["link_bytes_per_us"] = row.blocks.link_bytes_per_us();
    json["staged"]["host_copy_bytes_per_us"] = row.blocks.host_copy_bytes_per_us();
    json["staged"]["limit_us"] = row.blocks.limit_us(row.planned_bytes);
    json["staged"]["rate_over_limit"] = 1 / row.blocks.ratio_to_limit(row.planned_bytes);
    json["staged"]["row"] = row_json(row);
  }
  json["callers"] = Json::array();
  for (const CallersResult& result : report.callers) {
    json["callers"].push_back(callers_json(result));
  }
  json["models"] = models_json(report.models);
  if (!report.errors.empty()) {
    json["errors"] = errors_json(report.errors);
    json["monotone"] = monotone_json(report.ranges, report.errors);
  }
  if (!report.rules.empty()) {
    json["rules"] = rules_json(report.rules);
  }
  return json.dump(1, ' ', false, Json::error_handler_t::replace) + "\n"; // names may be any bytes
}

} // namespace offload::tools
