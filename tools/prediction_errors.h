#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include <offload/placement.h>
#include <offload/sweep.h>

namespace offload::tools {

/// One model, one shape of its inputs, one budget: what was predicted and what was measured.
struct ErrorRow {
  std::string model;
  std::string shape; ///< "float32[64,512], int64[64]"
  std::uint64_t budget_bytes = 0;
  Evidence before_by = Evidence::none; ///< what the prediction before the first call knew the call by
  std::optional<Prediction> before;    ///< before the model was loaded; none where that failed
  std::optional<Prediction> after;     ///< when two calls had been made under this budget
  std::uint64_t unused_bytes = 0;      ///< of the budget after two calls: for no weight, no ring and no reserve
  double measured_us = 0;
  double calls_s = 0; ///< how long all timed calls took
  std::size_t calls = 0;
  std::uint64_t peak_bytes = 0;     ///< measured; of everything that counts against the budget
  std::uint64_t streamed_bytes = 0; ///< measured, per call
  std::uint64_t cached_bytes = 0;   ///< of them, those that the page cache had
  Bound bound = Bound::neither;     ///< as Module::report() says
  std::string error;                ///< why nothing was measured; empty if it was

  bool was_measured() const { return error.empty(); }
};

/// How true one kind of prediction was, in all rows that have it and were measured.
struct Accuracy {
  std::size_t rows = 0;
  double tolerance = 0;          ///< what counts as close
  double median_error = 0;       ///< of |predicted / measured - 1|, of times
  double worst_error = 0;        ///< likewise, the greatest
  double share_close = 0;        ///< of the rows, in which that error is within the tolerance
  std::size_t peaks_under = 0;   ///< rows with a higher peak than predicted
  double peak_over = 0;          ///< greatest predicted / measured peak
  std::uint64_t peak_excess = 0; ///< greatest difference of the two, where more was predicted
};

struct ErrorSummary {
  std::size_t failed = 0; ///< rows that were not measured
  Accuracy before;
  Accuracy after;
};

/// Within 20% counts as close before the first call, within 5% after two.
ErrorSummary summarize(const std::vector<ErrorRow>& rows);

/// `count` budgets, at least two, at equal distances from `least` to `most`, both included. Fewer where some are equal.
std::vector<std::uint64_t> spread_budgets(std::uint64_t least, std::uint64_t most, std::size_t count);

} // namespace offload::tools
