#pragma once

#include <iosfwd>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include <tools/prediction_errors.h>

namespace offload::tools {

/// `text` as it may stand in a table, whatever it holds.
std::string cell(const std::string& text);

/// A line for each row, then the summary.
void write_errors(const std::vector<ErrorRow>& rows, std::ostream& out);
nlohmann::ordered_json errors_json(const std::vector<ErrorRow>& rows);

/// Predicted over measured time, both on logarithmic axes.
std::string errors_svg(const std::vector<ErrorRow>& rows, const std::string& heading);

/// "model, shape, budget: why", for the first row that was not measured; empty when all were.
std::string first_failure(const std::vector<ErrorRow>& rows);

} // namespace offload::tools
