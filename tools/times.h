#pragma once

#include <vector>

namespace offload::tools {

/// Times of single calls, in the order in which they were made.
using Times = std::vector<double>;

/// The upper one of the two in the middle where their number is even. 0 for none.
double median(Times times);

/// The smallest that is not below so much of them. 0 for none.
double percentile(Times times, double part);

} // namespace offload::tools
