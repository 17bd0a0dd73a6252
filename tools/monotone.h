#pragma once

#include <cstddef>
#include <cstdint>
#include <iosfwd>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include <offload/sweep.h>
#include <tools/prediction_errors.h>

namespace offload::tools {

/// A budget that is slower than a smaller one.
struct Rise {
  std::uint64_t faster_vram = 0;
  double faster_us = 0;
  std::uint64_t vram = 0;
  double time_us = 0;

  double factor() const { return time_us / faster_us; }
};

struct Rises {
  std::size_t points = 0;       ///< that were looked at
  std::size_t slower = 0;       ///< of these, those that take longer than some smaller budget
  std::optional<Rise> greatest; ///< by its factor; none where no budget is slower
};

/// Of points with ascending budgets. Each is compared with the fastest of those before it; a difference of less than a
/// millionth is none.
Rises find_rises(const std::vector<SweepPoint>& points);

/// What is predicted for one shape of a model's inputs over the whole range of budgets, before any call.
struct WholeRange {
  std::string model;
  std::string shape;
  std::uint64_t least = 0;
  std::uint64_t most = 0;
  double step_bytes = 0; ///< between two budgets
  double seconds = 0;    ///< that planning took
  Rises rises;
  std::string error; ///< why there is nothing of this; empty if there is
};

/// A line for each shape: the whole range, and what `rows` have of the same shape.
void write_monotone(const std::vector<WholeRange>& ranges, const std::vector<ErrorRow>& rows, std::ostream& out);
nlohmann::ordered_json monotone_json(const std::vector<WholeRange>& ranges, const std::vector<ErrorRow>& rows);

} // namespace offload::tools
