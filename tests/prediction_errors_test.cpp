// What `bench --errors` and `bench --monotone` say of rows that were measured.

#include <gtest/gtest.h>
#include <tools/bench_errors_report.h>
#include <tools/monotone.h>
#include <tools/prediction_errors.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <sstream>

namespace offload::tools {
namespace {

/// Predicted with a peak of 100 bytes and measured with `peak`.
ErrorRow row_of(double before_us, double after_us, double measured_us, std::uint64_t peak = 100) {
  ErrorRow row;
  row.model = "stack";
  row.shape = "float32[1,8]";
  row.budget_bytes = 1000;
  row.before = Prediction{before_us, 100, 0, 1, {}};
  row.after = Prediction{after_us, 100, 0, 1, {}};
  row.measured_us = measured_us;
  row.peak_bytes = peak;
  return row;
}

ErrorRow failed_row() {
  ErrorRow row = row_of(1, 1, 0);
  row.error = "out | of luck\nhere";
  return row;
}

std::size_t count(const std::string& text, const std::string& what) {
  std::size_t found = 0;
  for (std::size_t at = text.find(what); at != std::string::npos; at = text.find(what, at + what.size())) {
    ++found;
  }
  return found;
}

/// Of the element that begins at `at`.
double attribute(const std::string& svg, std::size_t at, const std::string& name) {
  const std::string before = " " + name + "='";
  return std::stod(svg.substr(svg.find(before, at) + before.size()));
}

std::vector<SweepPoint> points_of(const std::vector<double>& times) {
  std::vector<SweepPoint> points;
  for (const double time_us : times) {
    points.push_back({(points.size() + 1) * 10, time_us, 0, Bound::link});
  }
  return points;
}

TEST(PredictionErrors, OfTimesAreRelativeToWhatWasMeasured) {
  // Errors before: 0.5 (too short), 0.19 (too long), 0.0; after: 0.04, 0.06, 0.0.
  const ErrorSummary summary = summarize({row_of(50, 96, 100), row_of(119, 106, 100), row_of(100, 100, 100)});
  EXPECT_EQ(summary.before.rows, 3U);
  EXPECT_NEAR(summary.before.median_error, 0.19, 1e-12);
  EXPECT_DOUBLE_EQ(summary.before.worst_error, 0.5);
  EXPECT_DOUBLE_EQ(summary.before.share_close, 2.0 / 3);
  EXPECT_NEAR(summary.after.median_error, 0.04, 1e-12);
  EXPECT_NEAR(summary.after.worst_error, 0.06, 1e-12);
  EXPECT_DOUBLE_EQ(summary.after.share_close, 2.0 / 3);
}

TEST(PredictionErrors, CountPeaksAboveThePredictedAndTheMostBelowIt) {
  const ErrorSummary summary = summarize({row_of(1, 1, 1, 101), row_of(1, 1, 1, 100), row_of(1, 1, 1, 40)});
  EXPECT_EQ(summary.before.peaks_under, 1U);
  EXPECT_DOUBLE_EQ(summary.before.peak_over, 2.5);
  EXPECT_EQ(summary.before.peak_excess, 60U);
}

TEST(PredictionErrors, LeaveOutRowsThatWereNotMeasured) {
  ErrorRow only_after = row_of(1, 200, 100);
  only_after.before.reset();
  const ErrorSummary summary = summarize({failed_row(), only_after});
  EXPECT_EQ(summary.failed, 1U);
  EXPECT_EQ(summary.before.rows, 0U);
  EXPECT_EQ(summary.after.rows, 1U);
  EXPECT_DOUBLE_EQ(summary.after.median_error, 1);
}

TEST(PredictionErrors, AreWrittenWithTheReasonOfARowThatFailed) {
  const std::vector<ErrorRow> rows{row_of(50, 96, 100), failed_row()};
  std::ostringstream out;
  write_errors(rows, out);
  EXPECT_NE(out.str().find("| 0.500 | 0.960 |"), std::string::npos) << out.str();
  EXPECT_NE(out.str().find("**out / of luck"), std::string::npos) << "a bar would end the cell";
  const auto json = errors_json(rows);
  EXPECT_EQ(json["rows"].size(), 2U);
  EXPECT_EQ(json["rows"][0]["measured"]["time_us"], 100.0);
  EXPECT_FALSE(json["rows"][1].contains("measured"));
  EXPECT_EQ(json["summary"]["failed"], 1U);
  EXPECT_NE(first_failure(rows).find("of luck"), std::string::npos);
  EXPECT_EQ(first_failure({row_of(1, 1, 1)}), "");
}

TEST(PredictionErrors, AreDrawnOnADiagonalWhereTheyAreNone) {
  const std::string svg = errors_svg({row_of(50, 100, 100), failed_row(), row_of(1000, 1000, 1000)}, "heading");
  EXPECT_EQ(count(svg, "r='3.5'"), 4U) << "two for each row that was measured";
  // The axes go from 0.05 to 1 ms: a point that is right has as far to the left edge as to the bottom one.
  const double x = 70;
  const double bottom = 76 + 480;
  int on_diagonal = 0;
  for (std::size_t at = svg.find("<circle"); at != std::string::npos; at = svg.find("<circle", at + 1)) {
    const double to_left = attribute(svg, at, "cx") - x;
    const double to_bottom = bottom - attribute(svg, at, "cy");
    const bool is_point = attribute(svg, at, "r") < 4; // else it belongs to the legend
    on_diagonal += is_point && std::abs(to_left - to_bottom) < 0.2 ? 1 : 0;
  }
  EXPECT_EQ(on_diagonal, 3);
  EXPECT_EQ(count(errors_svg({failed_row()}, "heading"), "</svg>"), 1U);
}

TEST(Budgets, AreSpreadEvenlyFromTheFirstToTheLast) {
  EXPECT_EQ(spread_budgets(100, 200, 5), (std::vector<std::uint64_t>{100, 125, 150, 175, 200}));
  EXPECT_EQ(spread_budgets(7, 7, 11), std::vector<std::uint64_t>{7});
  EXPECT_EQ(spread_budgets(0, 1, 4), (std::vector<std::uint64_t>{0, 1}));
}

TEST(Rises, AreAgainstTheFastestOfAllSmallerBudgets) {
  const Rises rises = find_rises(points_of({10, 5, 6, 5.5, 4}));
  EXPECT_EQ(rises.points, 5U);
  EXPECT_EQ(rises.slower, 2U) << "5.5 is less than 6, and more than 5";
  ASSERT_TRUE(rises.greatest);
  EXPECT_EQ(rises.greatest->vram, 30U);
  EXPECT_EQ(rises.greatest->faster_vram, 20U);
  EXPECT_DOUBLE_EQ(rises.greatest->factor(), 1.2);
}

TEST(Rises, AreNoneWhereTimesFallOrStay) {
  EXPECT_FALSE(find_rises(points_of({10, 10, 5, 5 * (1 + 1e-9), 1})).greatest);
  EXPECT_EQ(find_rises({}).slower, 0U);
}

TEST(Rises, AreReportedOfTheRowsOfTheirShapeWithTheMostUnused) {
  std::vector<ErrorRow> rows{row_of(1, 10, 10), row_of(1, 11, 9), row_of(1, 12, 50)};
  for (ErrorRow& row : rows) {
    row.after->streamed_bytes = 5;
    row.unused_bytes = 3;
  }
  rows[1].unused_bytes = 4;
  rows[1].budget_bytes = 1001;
  rows[2].shape = "another";
  ErrorRow resident = row_of(1, 10, 9);
  resident.unused_bytes = 1000; // nothing streams
  rows.push_back(resident);
  WholeRange range;
  range.model = "stack";
  range.shape = "float32[1,8]";
  const auto json = monotone_json({range}, rows)[0];
  EXPECT_EQ(json["after"]["points"], 3U);
  EXPECT_EQ(json["after"]["slower"], 1U);
  EXPECT_EQ(json["after"]["greatest"]["vram"], 1001U);
  EXPECT_EQ(json["measured"]["slower"], 0U);
  EXPECT_EQ(json["most_unused_bytes"], 4U);
  EXPECT_EQ(json["unused_of_budget"], 1001U);
}

} // namespace
} // namespace offload::tools
