#pragma once

#include <string>

#include <offload/sweep.h>

namespace offload::tools {

/// A line for each budget; then the knee.
std::string to_table(const Sweep& sweep);
std::string to_json(const Sweep& sweep);
std::string to_svg(const Sweep& sweep);

/// The curve in plain characters, `columns` wide.
std::string to_plot(const Sweep& sweep, std::size_t columns);

/// What was found for a call of `time_us`. Throws InputError with the best time there is where no budget is enough.
std::string to_table(const Fit& fit, double time_us);
std::string to_json(const Fit& fit, double time_us);

} // namespace offload::tools
