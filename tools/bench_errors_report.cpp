#include <tools/bench_errors_report.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <ostream>

#include <offload/bytes.h>
#include <offload/core/printable.h>
#include <tools/numbers.h>

namespace offload::tools {

namespace {

using Json = nlohmann::ordered_json;

constexpr const char* kHowToReadErrors =
    R"(
## Predicted and measured

Before: predicted before the model was loaded, from the costs of the machine and from what the column "known by" says: the sizes
of a call's arguments, or calls that the preview made. After: predicted by the loaded module when it had made two calls under the
budget. Measured: calls back to back, the larger of the median and of a block's time divided by its calls, in the median of up to
five blocks, after those two calls. The columns p/m are predicted over measured. Peaks are of what counts against the budget. Bytes
are over the link, per call; of weights that the page cache has, a host reads them where they are.

| model | shape | budget | known by | before ms | after ms | measured ms | before p/m | after p/m | peak before | peak after | peak measured | bound by | MiB before | MiB after | MiB measured | timed s |
|---|---|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|---|---:|---:|---:|---:|
)";

std::string mib(std::uint64_t bytes) { return number("%.1f", static_cast<double>(bytes) / 1_MiB); }

std::string time_of(const std::optional<Prediction>& predicted) { return predicted ? ms(predicted->time_us) : "-"; }
std::string peak_of(const std::optional<Prediction>& predicted) {
  return predicted ? format_bytes(predicted->peak_device_bytes) : "-";
}
std::string streamed_of(const std::optional<Prediction>& predicted) {
  return predicted ? mib(predicted->streamed_bytes) : "-";
}
std::string ratio_of(const std::optional<Prediction>& predicted, const ErrorRow& row) {
  return predicted && row.measured_us > 0 ? number("%.3f", predicted->time_us / row.measured_us) : "-";
}

void write_row(const ErrorRow& row, std::ostream& out) {
  const bool measured = row.was_measured();
  const auto if_measured = [&](const std::string& text) { return measured ? text : std::string("-"); };
  out << "| " << cell(row.model) << " | " << cell(row.shape) << " | "
      << (row.budget_bytes > 0 ? format_bytes(row.budget_bytes) : "-") << " | "
      << (row.before ? to_string(row.before_by) : "-") << " | " << time_of(row.before) << " | " << time_of(row.after)
      << " | " << if_measured(ms(row.measured_us)) << " | " << ratio_of(row.before, row) << " | "
      << ratio_of(row.after, row) << " | " << peak_of(row.before) << " | " << peak_of(row.after) << " | "
      << if_measured(format_bytes(row.peak_bytes)) << " | "
      << (measured ? std::string(to_string(row.bound)) : "**" + cell(row.error) + "**") << " | "
      << streamed_of(row.before) << " | " << streamed_of(row.after) << " | " << if_measured(mib(row.streamed_bytes))
      << " | " << if_measured(number("%.2f", row.calls_s)) << " |\n";
}

std::string percent(double share) { return number("%.1f%%", 100 * share); }

void write_accuracy(const char* when, const Accuracy& accuracy, std::ostream& out) {
  if (accuracy.rows == 0) {
    out << "| " << when << " | 0 | - | - | - | - | - | - |\n";
    return;
  }
  out << "| " << when << " | " << accuracy.rows << " | " << percent(accuracy.median_error) << " | "
      << percent(accuracy.worst_error) << " | " << percent(accuracy.share_close) << " within "
      << number("%g%%", 100 * accuracy.tolerance) << " | " << accuracy.peaks_under << " | "
      << number("%.3f", accuracy.peak_over) << " | " << format_bytes(accuracy.peak_excess) << " |\n";
}

Json prediction_json(const std::optional<Prediction>& predicted) {
  if (!predicted) {
    return nullptr;
  }
  return {{"time_us", predicted->time_us},
          {"peak_device_bytes", predicted->peak_device_bytes},
          {"streamed_bytes", predicted->streamed_bytes}};
}

Json accuracy_json(const Accuracy& accuracy) {
  return {{"rows", accuracy.rows},
          {"tolerance", accuracy.tolerance},
          {"median_error", accuracy.median_error},
          {"worst_error", accuracy.worst_error},
          {"share_close", accuracy.share_close},
          {"peaks_under", accuracy.peaks_under},
          {"peak_over", accuracy.peak_over},
          {"peak_excess_bytes", accuracy.peak_excess}};
}

Json row_json(const ErrorRow& row) {
  Json json = {{"model", row.model},
               {"shape", row.shape},
               {"budget_bytes", row.budget_bytes},
               {"before_by", to_string(row.before_by)},
               {"before", prediction_json(row.before)},
               {"after", prediction_json(row.after)}};
  if (row.was_measured()) {
    json["measured"] = {{"time_us", row.measured_us},
                        {"calls", row.calls},
                        {"calls_s", row.calls_s},
                        {"peak_device_bytes", row.peak_bytes},
                        {"streamed_bytes", row.streamed_bytes},
                        {"cached_bytes", row.cached_bytes},
                        {"unused_bytes", row.unused_bytes},
                        {"bound", to_string(row.bound)}};
  } else {
    json["error"] = row.error;
  }
  return json;
}

} // namespace

std::string cell(const std::string& text) {
  std::string out = printable(text);
  std::replace(out.begin(), out.end(), '|', '/');
  return out;
}

void write_errors(const std::vector<ErrorRow>& rows, std::ostream& out) {
  out << kHowToReadErrors;
  for (const ErrorRow& row : rows) {
    write_row(row, out);
  }
  const ErrorSummary summary = summarize(rows);
  out << "\nIn all rows; errors are those of times, |predicted / measured - 1|.";
  if (summary.failed > 0) {
    out << " " << summary.failed << " were not measured.";
  }
  out << "\n\n| predicted | rows | median error | worst error | share close | peaks above the predicted | most peak "
         "predicted / measured | most peak predicted beyond the measured |\n|---|---:|---:|---:|---:|---:|---:|---:|\n";
  write_accuracy("before the first call", summary.before, out);
  write_accuracy("after two calls", summary.after, out);
}

Json errors_json(const std::vector<ErrorRow>& rows) {
  const ErrorSummary summary = summarize(rows);
  Json json = {{"rows", Json::array()},
               {"summary",
                {{"failed", summary.failed},
                 {"before", accuracy_json(summary.before)},
                 {"after", accuracy_json(summary.after)}}}};
  for (const ErrorRow& row : rows) {
    json["rows"].push_back(row_json(row));
  }
  return json;
}

std::string first_failure(const std::vector<ErrorRow>& rows) {
  const auto failed = std::find_if(rows.begin(), rows.end(), [](const ErrorRow& row) { return !row.was_measured(); });
  if (failed == rows.end()) {
    return "";
  }
  return failed->model + ", " + failed->shape +
         (failed->budget_bytes > 0 ? ", " + format_bytes(failed->budget_bytes) : "") + ": " + failed->error;
}

} // namespace offload::tools
