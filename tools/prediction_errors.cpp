#include <tools/prediction_errors.h>

#include <algorithm>
#include <cmath>

#include <tools/times.h>

namespace offload::tools {

namespace {

void count_peak(const Prediction& predicted, const ErrorRow& row, Accuracy& accuracy) {
  if (predicted.peak_device_bytes < row.peak_bytes) {
    ++accuracy.peaks_under;
  } else {
    accuracy.peak_excess = std::max(accuracy.peak_excess, predicted.peak_device_bytes - row.peak_bytes);
  }
  if (row.peak_bytes > 0) {
    accuracy.peak_over = std::max(
        accuracy.peak_over, static_cast<double>(predicted.peak_device_bytes) / static_cast<double>(row.peak_bytes));
  }
}

Accuracy accuracy_of(const std::vector<ErrorRow>& rows, std::optional<Prediction> ErrorRow::* which, double tolerance) {
  Accuracy accuracy;
  accuracy.tolerance = tolerance;
  std::vector<double> errors;
  for (const ErrorRow& row : rows) {
    const std::optional<Prediction>& predicted = row.*which;
    if (row.was_measured() && row.measured_us > 0 && predicted) {
      errors.push_back(std::abs(predicted->time_us / row.measured_us - 1));
      count_peak(*predicted, row, accuracy);
    }
  }
  accuracy.rows = errors.size();
  if (errors.empty()) {
    return accuracy;
  }
  const auto close = std::count_if(errors.begin(), errors.end(), [&](double error) { return error <= tolerance; });
  accuracy.share_close = static_cast<double>(close) / static_cast<double>(errors.size());
  accuracy.worst_error = *std::max_element(errors.begin(), errors.end());
  accuracy.median_error = median(std::move(errors));
  return accuracy;
}

} // namespace

ErrorSummary summarize(const std::vector<ErrorRow>& rows) {
  constexpr double kCloseBefore = 0.20;
  constexpr double kCloseAfter = 0.05;
  ErrorSummary summary;
  summary.failed = static_cast<std::size_t>(
      std::count_if(rows.begin(), rows.end(), [](const ErrorRow& row) { return !row.was_measured(); }));
  summary.before = accuracy_of(rows, &ErrorRow::before, kCloseBefore);
  summary.after = accuracy_of(rows, &ErrorRow::after, kCloseAfter);
  return summary;
}

std::vector<std::uint64_t> spread_budgets(std::uint64_t least, std::uint64_t most, std::size_t count) {
  std::vector<std::uint64_t> budgets;
  const double step = static_cast<double>(std::max(most, least) - least) / static_cast<double>(count - 1);
  for (std::size_t i = 0; i + 1 < count; ++i) {
    budgets.push_back(least + static_cast<std::uint64_t>(step * static_cast<double>(i)));
  }
  budgets.push_back(std::max(most, least));
  budgets.erase(std::unique(budgets.begin(), budgets.end()), budgets.end());
  return budgets;
}

} // namespace offload::tools
